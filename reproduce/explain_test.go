package reproduce

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestExplainNamesSectionAndSymbol(t *testing.T) {
	program := func(when string) string {
		return `const char built_at[] = "built at ` + when + `"; int main(void) { return built_at[0] == 0; }`
	}
	first, second := compile(t, program("10:11:12")), compile(t, program("10:11:47"))
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

// TestExplainELF compiles pairs of programs with small differences.
func TestExplainELF(t *testing.T) {
	const main = "int main(void) { return 0; }\n"
	many := func(n int) string {
		var b strings.Builder
		for i := range 20 {
			fmt.Fprintf(&b, "int number%d = %d;\n", i, 1000*n+i)
		}
		return b.String()
	}
	for _, test := range []struct {
		name          string
		first, second string
		want          []string // sections, symbols and contents of the first causes
	}{
		{"static namesakes", // of which the second differs
			"static int f(void) { return 1; } int one(void) { static int n = 1; return n + f(); } int two(void) { static int n = 2; return n; }",
			"static int f(void) { return 1; } int one(void) { static int n = 1; return n + f(); } int two(void) { static int n = 3; return n; }",
			[]string{".data n."}},
		{"longer variable", // moves all that follows
			`char a[] = "short", b[] = "constant"; int c = 7;`,
			`char a[] = "much longer than before", b[] = "constant"; int c = 7;`,
			[]string{`.data a: "short" against "much longer than before"`}},
		{"new function", "", "int added(void) { return 3; }", []string{".text added: no such symbol against"}},
		{"missing variable", "int gone = 5;", "", []string{".data gone: 4 bytes against no such symbol"}},
		{"literal without a symbol", `const char *p(void) { return "compiled on monday"; }`, `const char *p(void) { return "compiled on friday"; }`,
			[]string{`.rodata : "compiled on monday" against "compiled on friday"`}},
		{"variable and literal", `const char *p(void) { return "on monday"; } const int n = 1;`, `const char *p(void) { return "on friday"; } const int n = 2;`,
			[]string{`.rodata n: `, `.rodata : "on monday" against "on friday"`}},
		{"bss", "char b[10000];", "char b[20000];", []string{".bss : "}},
		{"many", many(1), many(2), []string{".data number0: ", ".data number1: ", ".data number2: ", ".data number3: ", ".data number4: ", ".data number5: ",
			".data number6: ", ".data number7: ", ".data number8: ", ".data number9: ", ".data number10 and 9 others: "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			causes := Explain(compile(t, test.first+main), compile(t, test.second+main))
			for i, want := range test.want {
				if i >= len(causes) {
					t.Fatalf("Explain gave only %v, expected %q next", causes, want)
				}
				c := causes[i]
				if got := c.Section + " " + c.Symbol + ": " + c.First + " against " + c.Second; !strings.HasPrefix(got, want) {
					t.Errorf("cause %d is %q, expected %q", i, got, want)
				}
			}
			order := 0 // loaded sections first
			for _, c := range causes {
				if described := c.Section == ".symtab" || c.Section == ".strtab"; described {
					order = 1
				} else if order == 1 && c.Section != ".shstrtab" && c.Section != ".comment" {
					t.Errorf("%v comes after what only describes it", c)
				}
			}
		})
	}
}

func compile(t *testing.T, program string) []byte {
	t.Helper()
	dir := t.TempDir()
	source, out := filepath.Join(dir, "x.c"), filepath.Join(dir, "x")
	if err := os.WriteFile(source, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("gcc", "-Wl,--build-id=none", "-o", out, "x.c")
	cmd.Dir = dir
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
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
