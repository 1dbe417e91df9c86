package reproduce

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestExplainNamesSectionAndSymbol(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "x.c")
	compile := func(when string) []byte {
		t.Helper()
		if err := os.WriteFile(source, []byte(`const char built_at[] = "built at `+when+`"; int main(void) { return built_at[0] == 0; }`), 0o644); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "x")
		if msg, err := exec.Command("gcc", "-Wl,--build-id=none", "-o", out, source).CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v\n%s", err, msg)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, second := compile("10:11:12"), compile("10:11:47")
	causes := Explain(first, second)
	if len(causes) != 1 {
		t.Fatalf("Explain gave %v, want one cause", causes)
	}
	c := causes[0]
	if c.Section != ".rodata" || c.Symbol != "built_at" || c.Bytes != 2 || !strings.Contains(c.First, "10:11:12") || !strings.Contains(c.Second, "10:11:47") {
		t.Errorf("Explain gave %+v", c)
	}
	if causes := Explain(first, first); causes != nil {
		t.Errorf("Explain of equal files gave %v", causes)
	}
}

func TestExplainPlainFiles(t *testing.T) {
	causes := Explain([]byte("one two three"), []byte("one two four!"))
	if len(causes) != 1 || causes[0].Offset != 8 || causes[0].Bytes != 5 {
		t.Errorf("Explain gave %+v", causes)
	}
	causes = Explain([]byte("one"), []byte("one two"))
	if len(causes) != 1 || causes[0].Offset != 3 || causes[0].Bytes != 4 || !strings.Contains(causes[0].First, "the end") {
		t.Errorf("Explain of a truncated file gave %+v", causes)
	}
}
