import com.intellij.rt.coverage.data.BranchData;
import com.intellij.rt.coverage.data.ClassData;
import com.intellij.rt.coverage.data.LineData;
import com.intellij.rt.coverage.util.ProjectDataLoader;
import java.io.File;

/**
 * What Kover's agent noted: for each line with branches its class, number, how many branches were not
 * reached, and how many there are. Run by branches.py from this source.
 */
public class BranchReport {
    public static void main(String[] arguments) throws Exception {
        for (ClassData one : ProjectDataLoader.load(new File(arguments[0])).getClassesCollection()) {
            if (one.getLines() == null) continue;
            for (Object found : one.getLines()) {
                LineData line = (LineData) found;
                BranchData branches = line == null ? null : line.getBranchData();
                if (branches == null || branches.getTotalBranches() == 0) continue;
                int missed = branches.getTotalBranches() - branches.getCoveredBranches();
                System.out.println(
                    one.getName() + " " + line.getLineNumber() + " " + missed + " " + branches.getTotalBranches());
            }
        }
    }
}
