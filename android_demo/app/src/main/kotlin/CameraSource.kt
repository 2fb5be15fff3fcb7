package patchdeploy.demo

import android.annotation.SuppressLint
import android.content.Context
import android.graphics.ImageFormat
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.hardware.camera2.CaptureRequest
import android.media.Image
import android.media.ImageReader
import android.os.Handler
import android.os.HandlerThread
import android.view.Surface
import android.view.WindowManager
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.image.Plane
import patchdeploy.patchkit.image.Rectangle
import patchdeploy.patchkit.image.Yuv420

private const val WIDTH = 640
private const val HEIGHT = 480

/** The one that is worked on, and the one that the camera writes. */
private const val IMAGES = 2

/**
 * The back camera, else the first: frames of 640 x 480 in YUV 4:2:0, on a thread of its own.
 *
 * Whatever goes wrong (no camera, no permission, another app takes it) is a problem in words, and
 * everything that was opened is closed.
 */
class CameraSource(private val context: Context) : FrameSource {
    private val manager = context.getSystemService(CameraManager::class.java)!!
    private val thread = HandlerThread("camera").apply { start() }
    private val handler = Handler(thread.looper)
    private var listener: FrameListener? = null
    private var device: CameraDevice? = null
    private var reader: ImageReader? = null
    private var rotation = 0
    private var isFront = false

    override fun start(listener: FrameListener) {
        handler.post {
            this.listener = listener
            try {
                open()
            } catch (error: CameraAccessException) {
                lose(R.string.camera_failed, error)
            } catch (error: SecurityException) { // revoked since it was asked for
                lose(R.string.camera_refused, error)
            } catch (error: IllegalArgumentException) { // taken out while it was being opened
                lose(R.string.camera_failed, error)
            }
        }
    }

    @SuppressLint("MissingPermission") // the activity asks; without it openCamera throws
    private fun open() {
        val id = manager.cameraIdList.sortedBy { facing(it) != CameraCharacteristics.LENS_FACING_BACK }.firstOrNull()
        if (id == null) return lose(R.string.camera_none, null)
        isFront = facing(id) == CameraCharacteristics.LENS_FACING_FRONT
        rotation = uprightRotation(manager.getCameraCharacteristics(id).get(CameraCharacteristics.SENSOR_ORIENTATION) ?: 0, isFront, displayDegrees())
        manager.openCamera(id, Opened(), handler)
    }

    private fun facing(id: String): Int? = manager.getCameraCharacteristics(id).get(CameraCharacteristics.LENS_FACING)

    @Suppress("DEPRECATION") // Context.getDisplay is there from API 30 on
    private fun displayDegrees(): Int = when (context.getSystemService(WindowManager::class.java)!!.defaultDisplay.rotation) {
        Surface.ROTATION_90 -> 90
        Surface.ROTATION_180 -> 180
        Surface.ROTATION_270 -> 270
        else -> 0
    }

    private inner class Opened : CameraDevice.StateCallback() {
        override fun onOpened(camera: CameraDevice) {
            if (listener == null) return camera.close() // stopped meanwhile
            device = camera
            val images = ImageReader.newInstance(WIDTH, HEIGHT, ImageFormat.YUV_420_888, IMAGES)
            reader = images
            images.setOnImageAvailableListener({ take(it) }, handler)
            try {
                @Suppress("DEPRECATION") // SessionConfiguration is there from API 28 on
                camera.createCaptureSession(listOf(images.surface), Configured(camera, images), handler)
            } catch (error: CameraAccessException) {
                lose(R.string.camera_failed, error)
            }
        }

        override fun onDisconnected(camera: CameraDevice) = lose(R.string.camera_taken, null)
        override fun onError(camera: CameraDevice, error: Int) = lose(R.string.camera_failed, CameraErrorException(error))
    }

    private inner class Configured(private val camera: CameraDevice, private val images: ImageReader) :
        CameraCaptureSession.StateCallback() {
        override fun onConfigured(session: CameraCaptureSession) {
            try {
                val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW)
                request.addTarget(images.surface)
                request.set(CaptureRequest.CONTROL_AF_MODE, CaptureRequest.CONTROL_AF_MODE_CONTINUOUS_PICTURE)
                session.setRepeatingRequest(request.build(), null, handler)
            } catch (error: CameraAccessException) {
                lose(R.string.camera_failed, error)
            } catch (_: IllegalStateException) {
                // closed meanwhile
            }
        }

        override fun onConfigureFailed(session: CameraCaptureSession) = lose(R.string.camera_failed, null)
    }

    private fun take(reader: ImageReader) {
        val image = reader.acquireLatestImage() ?: return
        val to = listener
        if (to == null) image.close() else to.onFrame(CameraFrame(image, rotation, isFront))
    }

    private fun lose(words: Int, cause: Throwable?) {
        val to = listener
        close()
        to?.onProblem(Problem(Words(words), cause))
    }

    private fun close() {
        listener = null
        device?.close()
        device = null
        reader?.close()
        reader = null
    }

    override fun stop() {
        handler.post {
            close()
            thread.quitSafely()
        }
    }
}

/** [code] is CameraDevice.StateCallback's. */
class CameraErrorException(code: Int) : RuntimeException("camera error $code")

/** Degrees clockwise from a sensor's picture to an upright one on the screen. */
internal fun uprightRotation(sensorDegrees: Int, isFront: Boolean, displayDegrees: Int): Int =
    if (isFront) (sensorDegrees + displayDegrees) % 360 else (sensorDegrees - displayDegrees + 360) % 360

private class CameraFrame(private val image: Image, private val rotation: Int, private val isMirrored: Boolean) : Frame {
    override fun toPixels(): Pixels {
        val (y, u, v) = image.planes.map { Plane(it.buffer, it.rowStride, it.pixelStride) }
        val crop = image.cropRect.run { Rectangle(left, top, width(), height()) }
        return Yuv420(image.width, image.height, y, u, v).toPixels(crop, rotation, isMirrored)
    }

    override fun close(): Unit = image.close()
}
