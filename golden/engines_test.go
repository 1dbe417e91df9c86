package golden

import (
	"runtime"
	"slices"
	"testing"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/recipes"
)

// The engines of upgrades 16 and 18 have the same XS, and differ only in what they do when the host dies (agoric-sdk #10099). So all that
// a vector can see is alike, and only the version tells them apart; package xsnap tests the rest.
func TestEnginesThatDifferInTheirEndOnly(t *testing.T) {
	const platform = "linux/" + runtime.GOARCH
	r := enginetest.Recipe(t, "agoric-upgrade-16")
	e := engine(t, r, platform, recipes.Release)
	e.Path = engine(t, enginetest.Recipe(t, "agoric-upgrade-18"), platform, recipes.Release).Path
	if failed := failures(t, e, r); !slices.Equal(failed, []string{"description version"}) {
		t.Errorf("failed: %q, expected the version only", failed)
	}
}

// The C library chooses among variants of its functions by the processor. The workers must compute alike on all, so nothing changes when
// the library is told that the processor has none of the instructions that it chooses by.
func TestMathOfOtherProcessors(t *testing.T) {
	for _, goal := range []string{recipes.Release, recipes.Debug} {
		t.Run(goal, func(t *testing.T) {
			r := enginetest.Recipe(t, "agoric-upgrade-16")
			r.Golden[recipes.Release] = map[string]map[string]recipes.Observation{"math": r.Golden[goal]["math"]}
			e := engine(t, r, "linux/amd64", goal)
			e.Emulator = append([]string{"/usr/bin/env", "GLIBC_TUNABLES=glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4,-AVX"}, e.Emulator...)
			if failed := failures(t, e, r); failed != nil {
				t.Errorf("failed: %q", failed)
			}
		})
	}
}

// failures returns the vector and label of each result of the release worker's vectors that is not OK.
func failures(t *testing.T, e Engine, r *recipes.Recipe) (failed []string) {
	t.Helper()
	results, err := Check(t.Context(), e, r, recipes.Release)
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range results {
		if !result.OK {
			failed = append(failed, result.Vector+" "+result.Label)
		}
	}
	return failed
}
