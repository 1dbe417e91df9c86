package sim

import (
	"strings"
	"testing"
)

// The small version of what mage sim does.
func TestRun(t *testing.T) {
	t.Parallel()
	o := Options{Vats: 2000, Messages: 20_000, FailEvery: 100, Rebuild: true}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Failed != 20 || r.Upgraded != 1999 || r.Delivered < o.Messages {
		t.Errorf("%d failed, %d were upgraded, %d were delivered", r.Failed, r.Upgraded, r.Delivered)
	}
	var b strings.Builder
	if err := r.Write(&b, false); err != nil || !strings.Contains(b.String(), "mend and flush") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// The work of a block is that of what it touches, to the single call of the store.
func TestIndependent(t *testing.T) {
	t.Parallel()
	var first Probe
	for _, vats := range []int64{300, 3000, 12_000} {
		p, err := Measure(t.Context(), vats)
		if err != nil {
			t.Fatal(err)
		}
		if first.Vats == 0 {
			first = p
		}
		if p.Work != first.Work {
			t.Errorf("among %d vats a block is %+v, among %d it is %+v", p.Vats, p.Work, first.Vats, first.Work)
		}
	}
	t.Logf("%+v", first.Work)
}
