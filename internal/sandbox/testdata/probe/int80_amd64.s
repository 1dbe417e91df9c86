// func int80(nr uintptr) int32 makes a system call of the 32-bit architecture.
TEXT ·int80(SB),4,$0-12
	MOVQ	nr+0(FP), AX
	INT	$0x80
	MOVL	AX, ret+8(FP)
	RET
