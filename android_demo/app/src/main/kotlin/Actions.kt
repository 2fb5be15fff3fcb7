package patchdeploy.demo

/** What a page cannot do without the activity: ask the user or another app. */
internal interface Actions {
    /** Ask for the permission where it is missing, then take pictures from the camera. */
    fun useCamera()

    fun pickPicture()

    fun pickPatch()

    fun exportBenchmark()
}
