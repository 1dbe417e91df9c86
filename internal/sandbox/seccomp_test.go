package sandbox

import (
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
)

// A misspelt name would be one that no architecture has, and so be left out.
func TestFilterNames(t *testing.T) {
	for _, c := range []struct {
		info *arch.Info
		lack string // what the architecture never had
	}{
		{arch.X86_64, ""},
		{arch.AARCH64, "ioperm iopl _sysctl create_module get_kernel_syms modify_ldt query_module sysfs uselib ustat vserver"},
	} {
		var lack []string
		for _, name := range slices.Concat(refused, absent, []string{"clone", "personality", "socket", "socketpair"}) {
			if _, ok := c.info.SyscallNames[name]; !ok {
				lack = append(lack, name)
			}
		}
		if got := strings.Join(lack, " "); got != c.lack {
			t.Errorf("%s has not: %s\nwant: %s", c.info.Name, got, c.lack)
		}
	}
	if _, err := filter(); err != nil {
		t.Error(err)
	}
}
