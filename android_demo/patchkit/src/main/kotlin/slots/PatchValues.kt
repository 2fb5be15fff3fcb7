package patchdeploy.patchkit.slots

/**
 * One task at one resolution as flat arrays, in the base's site order.
 *
 * @property weightScale float32 [rows], the output channels of every convolution in graph order.
 * @property bias int32 [rows], in the same order.
 * @property activationScale float32 [activation sites], positive and normal.
 * @property activationZeroPoint int8 [activation sites].
 * @property weights int8 [n], the patch-owned kernels [O, kh, kw, I/groups], one after the other.
 */
public class PatchValues(
    public val weightScale: FloatArray,
    public val bias: IntArray,
    public val activationScale: FloatArray,
    public val activationZeroPoint: ByteArray,
    public val weights: ByteArray,
)
