package patchdeploy.packager

import java.nio.file.Files
import java.nio.file.Path
import java.security.KeyStore
import java.security.PrivateKey
import java.security.cert.X509Certificate

private const val ALIAS = "androiddebugkey"
private const val PASSWORD = "android"

/**
 * The key of Android's debug builds: made where it is missing, known to everybody, good for no release.
 */
public class DebugKey private constructor(public val private: PrivateKey, public val certificate: X509Certificate) {
    public companion object {
        /** @param store a PKCS #12 file. */
        public fun loadOrMake(store: Path): DebugKey {
            if (!Files.exists(store)) make(store)
            val keys = KeyStore.getInstance(store.toFile(), PASSWORD.toCharArray())
            val key = keys.getKey(ALIAS, PASSWORD.toCharArray()) as PrivateKey
            return DebugKey(key, keys.getCertificate(ALIAS) as X509Certificate)
        }

        private fun make(store: Path) {
            Files.createDirectories(store.toAbsolutePath().parent)
            val keytool = Path.of(System.getProperty("java.home"), "bin", "keytool")
            runTool(
                listOf(keytool, "-genkeypair", "-keystore", store, "-storepass", PASSWORD, "-keypass", PASSWORD) +
                    listOf("-storetype", "PKCS12", "-alias", ALIAS, "-keyalg", "RSA", "-keysize", "2048") +
                    listOf("-validity", "10000", "-dname", "CN=Android Debug,O=Android,C=US"),
            )
        }
    }
}
