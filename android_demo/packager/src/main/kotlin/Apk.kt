package patchdeploy.packager

import com.android.apksig.ApkSigner
import com.android.apksig.ApkVerifier
import com.android.apksig.KeyConfig
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.attribute.FileTime
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipFile
import java.util.zip.ZipOutputStream

/** 1980-01-01, the first time that a zip can hold: the same input gives the same bytes. */
private val NO_TIME: FileTime = FileTime.fromMillis(315_532_800_000L)

/** The processors that the app is built for, as Android names them. */
private val ABIS = setOf("arm64-v8a")

/**
 * An APK before it is signed.
 *
 * @param resources the zip of [Resources.link]; what is stored there is stored here.
 * @param dex classes.dex and further ones.
 * @param natives jars and Android archives whose native libraries lie in a folder named as in [ABIS].
 * @throws ToolException one of them has none.
 */
public fun assemble(resources: Path, dex: List<Path>, natives: List<Path>, out: Path) {
    ZipOutputStream(Files.newOutputStream(out)).use { zip ->
        ZipFile(resources.toFile()).use { linked ->
            for (entry in linked.entries()) {
                zip.addEntry(entry.name, linked.getInputStream(entry).readBytes(), entry.method == ZipEntry.STORED)
            }
        }
        for (file in dex) zip.addEntry(file.fileName.toString(), Files.readAllBytes(file), isStored = false)
        for (jar in natives) addLibraries(zip, jar)
    }
}

/** Stored, so that Android maps them from the APK. */
private fun addLibraries(zip: ZipOutputStream, jar: Path): Unit = ZipFile(jar.toFile()).use { packed ->
    val libraries = packed.entries().asSequence().filter { it.name.endsWith(".so") && abiOf(it.name) in ABIS }.toList()
    if (libraries.isEmpty()) throw ToolException("$jar has no library for ${ABIS.joinToString()}; take another version of it")
    for (entry in libraries) {
        val name = entry.name.substringAfterLast('/')
        zip.addEntry("lib/${abiOf(entry.name)}/$name", packed.getInputStream(entry).readBytes(), isStored = true)
    }
}

/** `lib/arm64-v8a/x.so` in a jar of JavaCPP, `jni/arm64-v8a/x.so` in an Android archive. */
private fun abiOf(path: String): String = path.substringBeforeLast('/').substringAfterLast('/')

internal fun ZipOutputStream.addEntry(name: String, bytes: ByteArray, isStored: Boolean) {
    val entry = ZipEntry(name).apply { lastModifiedTime = NO_TIME }
    if (isStored) {
        entry.method = ZipEntry.STORED
        entry.size = bytes.size.toLong()
        entry.compressedSize = entry.size
        entry.crc = CRC32().apply { update(bytes) }.value
    }
    putNextEntry(entry)
    write(bytes)
    closeEntry()
}

/**
 * Align native libraries to pages of 16 KB and sign with schemes v2 and v3.
 *
 * @throws ToolException the signed file does not verify.
 */
public fun sign(unsigned: Path, key: DebugKey, leastSdk: Int, out: Path) {
    val signer = ApkSigner.SignerConfig.Builder("patchdeploy", KeyConfig.Jca(key.private), listOf(key.certificate)).build()
    ApkSigner.Builder(listOf(signer))
        .setInputApk(unsigned.toFile())
        .setOutputApk(out.toFile())
        .setMinSdkVersion(leastSdk)
        .setV1SigningEnabled(false)
        .setV2SigningEnabled(true)
        .setV3SigningEnabled(true)
        .setAlignmentPreserved(false)
        .setLibraryPageAlignmentBytes(PAGE_BYTES)
        .build()
        .sign()
    val found = ApkVerifier.Builder(out.toFile()).build().verify()
    if (!found.isVerified || !found.isVerifiedUsingV2Scheme || !found.isVerifiedUsingV3Scheme) {
        throw ToolException("$out does not verify after signing: ${found.errors}")
    }
}

private const val PAGE_BYTES = 16_384
