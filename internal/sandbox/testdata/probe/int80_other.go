//go:build !amd64

package main

import "syscall"

// int80: there is no way to change the architecture within a process.
func int80(uintptr) int32 { return -int32(syscall.ENOSYS) }
