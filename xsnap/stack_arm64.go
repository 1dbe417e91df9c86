package xsnap

import "golang.org/x/sys/unix"

type registers unix.PtraceRegsArm64

func (r *registers) get(pid int) error {
	return unix.PtraceGetRegSetArm64(pid, unix.NT_PRSTATUS, (*unix.PtraceRegsArm64)(r))
}

func (r *registers) set(pid int) error {
	return unix.PtraceSetRegSetArm64(pid, unix.NT_PRSTATUS, (*unix.PtraceRegsArm64)(r))
}

func (r *registers) sp() *uint64 { return &r.Sp }
