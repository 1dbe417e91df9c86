package pins

import (
	"testing"

	"github.com/enginery/enginery/internal/cas"
)

// A build with nothing to do asks this of the store first.
func BenchmarkFetchNothing(b *testing.B) {
	p, f := fetched(b)
	for b.Loop() {
		if err := f.Fetch(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// From packages in the store to checked trees in the store.
func BenchmarkUnpack(b *testing.B) {
	p, f := fetched(b)
	for b.Loop() {
		for _, c := range []*Component{&p.Moddable, &p.XsnapNative} {
			if _, err := f.obtain(b.Context(), c, place{source: c.Sources[0]}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func fetched(b *testing.B) (*Pin, *Fetcher) {
	store, err := cas.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	f := &Fetcher{Store: store}
	p, err := Load("f6c5951f-105bc686")
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Fetch(b.Context(), p); err != nil {
		b.Fatal(err)
	}
	return p, f
}
