//go:build armbe || arm64be || m68k || mips || mips64 || mips64p32 || ppc || ppc64 || s390 || s390x || shbe || sparc || sparc64

package store

// Source files are in the byte order of the machine that wrote them, and this package
// reads them in place as little-endian: it does not build elsewhere.
var _ = sourceFilesAreReadOnLittleEndianMachinesOnly
