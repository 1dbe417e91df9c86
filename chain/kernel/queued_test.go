package kernel

import (
	"testing"

	"github.com/enginery/enginery/swingstore"
)

// A chain that only has vats to tell of garbage still has something to do.
func TestQueued(t *testing.T) {
	s, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, step := range []struct {
		key, value string
		want       int64
	}{
		{"gcActions", `[]`, 0},
		{"gcActions", `["v1 dropExport ko21","v1 retireExport ko21"]`, 2},
		{"runQueue", `[3,7]`, 6},
		{"acceptanceQueue", `[0,1]`, 7},
		{"gcActions", `[]`, 5},
	} {
		if err := s.Update(func(tx *swingstore.Tx) error { return tx.Set(step.key, step.value) }); err != nil {
			t.Fatal(err)
		}
		if got, err := Queued(t.Context(), &s.Reader); err != nil || got != step.want {
			t.Errorf("with %s = %s: %d, %v; expected %d", step.key, step.value, got, err, step.want)
		}
	}
}
