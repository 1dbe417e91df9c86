package xsnap

import "golang.org/x/sys/unix"

type registers unix.PtraceRegsAmd64

func (r *registers) get(pid int) error {
	return unix.PtraceGetRegsAmd64(pid, (*unix.PtraceRegsAmd64)(r))
}
func (r *registers) set(pid int) error {
	return unix.PtraceSetRegsAmd64(pid, (*unix.PtraceRegsAmd64)(r))
}
func (r *registers) sp() *uint64 { return &r.Rsp }
