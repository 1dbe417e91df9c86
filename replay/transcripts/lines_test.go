package transcripts_test

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/replay/transcripts"
)

// A slog that ends in the middle of a line, plain or gzip, is named as that.
func TestCutOff(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(swingsettest.Slog(t))
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"slog.jsonl": b[:200_000], "slog.jsonl.gz": z.Bytes()[:z.Len()/2]} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := transcripts.Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "is cut off") {
			t.Errorf("%s: %v %v", name, s, err)
		}
	}
}
