package reproduce

import (
	"bytes"
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
	"strconv"
)

// Cause is one place in which two builds of a file differ.
type Cause struct {
	Section string `json:"section,omitempty"` // ELF section, if the file is an ELF file
	Symbol  string `json:"symbol,omitempty"`  // the function or variable there, if the file has symbols
	Offset  int64  `json:"offset"`            // of the first differing byte, in the first build's section or file
	Bytes   int64  `json:"bytes"`             // how many bytes differ
	First   string `json:"first"`             // what the first build has there
	Second  string `json:"second"`            // what the second has
}

func (c Cause) String() string {
	where := fmt.Sprintf("at offset %d", c.Offset)
	if c.Section != "" {
		where = fmt.Sprintf("in section %s, offset %d", c.Section, c.Offset)
	}
	if c.Symbol != "" {
		where += ", symbol " + c.Symbol
	}
	what := fmt.Sprintf("%d bytes differ", c.Bytes)
	if c.Bytes == 1 {
		what = "1 byte differs"
	}
	return fmt.Sprintf("%s %s: %s against %s", what, where, c.First, c.Second)
}

// maxSymbols is how many symbols of one section Explain names.
const maxSymbols = 10

// Explain says where two versions of a file differ: symbol by symbol, or else section by section, for ELF files; otherwise at the
// first byte. What is loaded when the program runs comes before what only describes it (symbol tables, debug information), and
// what has changed its size before what may have changed only because of that.
func Explain(first, second []byte) []Cause {
	if bytes.Equal(first, second) {
		return nil
	}
	a, aerr := elf.NewFile(bytes.NewReader(first))
	b, berr := elf.NewFile(bytes.NewReader(second))
	if aerr != nil || berr != nil {
		return []Cause{compare(first, second)}
	}
	var loaded, other []Cause
	add := func(s *elf.Section, causes ...Cause) {
		for i := range causes {
			causes[i].Section = s.Name
		}
		if s.Flags&elf.SHF_ALLOC != 0 {
			loaded = append(loaded, causes...)
		} else {
			other = append(other, causes...)
		}
	}
	only := func(s *elf.Section, first, second string) {
		add(s, Cause{Bytes: int64(s.Size), First: first, Second: second})
	}
	for _, s := range a.Sections {
		switch t := b.Section(s.Name); {
		case t == nil:
			only(s, size(s.Size), "no such section")
		case s.Type == elf.SHT_NULL:
		case s.Type == elf.SHT_NOBITS || t.Type == elf.SHT_NOBITS:
			if s.Size != t.Size {
				add(s, Cause{Bytes: max(int64(s.Size), int64(t.Size)) - min(int64(s.Size), int64(t.Size)), First: size(s.Size), Second: size(t.Size)})
			}
		default:
			add(s, compareSections(a, s, b, t)...)
		}
	}
	for _, t := range b.Sections {
		if a.Section(t.Name) == nil {
			only(t, "no such section", size(t.Size))
		}
	}
	causes := append(loaded, other...)
	if len(causes) == 0 { // headers or padding
		causes = append(causes, compare(first, second))
	}
	return causes
}

func size(n uint64) string { return fmt.Sprintf("%d bytes", n) }

func compareSections(a *elf.File, s *elf.Section, b *elf.File, t *elf.Section) []Cause {
	x, err := s.Data()
	if err != nil {
		return []Cause{{Bytes: int64(s.Size), First: err.Error()}}
	}
	y, err := t.Data()
	if err != nil {
		return []Cause{{Bytes: int64(t.Size), Second: err.Error()}}
	}
	if bytes.Equal(x, y) {
		return nil
	}
	xs := symbolsOf(a, s)
	causes := compareSymbols(x, xs, y, symbolsOf(b, t))
	if len(x) == len(y) { // then what is in no symbol can be compared, too, such as string literals
		rest := slices.Clone(y)
		for _, sym := range xs {
			copy(rest[sym.start:sym.end], x[sym.start:sym.end])
		}
		if !bytes.Equal(x, rest) {
			causes = append(causes, compare(x, rest))
		}
	}
	if len(causes) == 0 {
		causes = append(causes, compare(x, y))
	}
	return causes
}

// symbol is a named range of a section.
type symbol struct {
	name       string
	start, end int64
}

// key names a symbol among others of the same name, such as static functions of several source files.
type key struct {
	name string
	nth  int
}

// symbolsOf returns the functions and variables in a section, in the order of their addresses.
func symbolsOf(f *elf.File, s *elf.Section) []symbol {
	all, err := f.Symbols()
	if err != nil {
		return nil
	}
	var in []symbol
	for _, sym := range all {
		kind := elf.ST_TYPE(sym.Info)
		if kind != elf.STT_FUNC && kind != elf.STT_OBJECT && kind != elf.STT_GNU_IFUNC {
			continue
		}
		if int(sym.Section) >= len(f.Sections) || f.Sections[sym.Section] != s || sym.Size == 0 || sym.Value < s.Addr {
			continue
		}
		start := sym.Value - s.Addr
		if start > s.Size || sym.Size > s.Size-start {
			continue
		}
		in = append(in, symbol{sym.Name, int64(start), int64(start + sym.Size)})
	}
	slices.SortStableFunc(in, func(a, b symbol) int { return cmp.Compare(a.start, b.start) })
	return in
}

// compareSymbols compares the symbols of two versions of a section by their names, wherever they are.
func compareSymbols(x []byte, xs []symbol, y []byte, ys []symbol) []Cause {
	inY := make(map[key]symbol)
	count := make(map[string]int)
	for _, s := range ys {
		inY[key{s.name, count[s.name]}] = s
		count[s.name]++
	}
	var resized, changed []Cause
	clear(count)
	covered := int64(-1) // aliases have the same range
	for _, s := range xs {
		k := key{s.name, count[s.name]}
		count[s.name]++
		t, ok := inY[k]
		delete(inY, k)
		if s.end <= covered {
			continue
		}
		if !ok {
			resized = append(resized, Cause{Symbol: s.name, Offset: s.start, Bytes: s.end - s.start, First: size(uint64(s.end - s.start)), Second: "no such symbol"})
			continue
		}
		if bytes.Equal(x[s.start:s.end], y[t.start:t.end]) {
			continue
		}
		covered = s.end
		c := compare(x[s.start:s.end], y[t.start:t.end])
		c.Symbol = s.name
		c.Offset += s.start
		if s.end-s.start != t.end-t.start {
			resized = append(resized, c)
		} else {
			changed = append(changed, c)
		}
	}
	for _, t := range ys {
		for k, left := range inY {
			if left == t {
				resized = append(resized, Cause{Symbol: t.name, Offset: t.start, Bytes: t.end - t.start, First: "no such symbol", Second: size(uint64(t.end - t.start))})
				delete(inY, k)
			}
		}
	}
	causes := append(resized, changed...)
	if more := len(causes) - maxSymbols; more > 0 {
		rest := Cause{Symbol: fmt.Sprintf("%s and %d others", causes[maxSymbols].Symbol, more-1), Offset: causes[maxSymbols].Offset,
			First: causes[maxSymbols].First, Second: causes[maxSymbols].Second}
		for _, c := range causes[maxSymbols:] {
			rest.Bytes += c.Bytes
		}
		causes = append(causes[:maxSymbols], rest)
	}
	return causes
}

// compare compares two byte strings that differ, byte by byte.
func compare(first, second []byte) Cause {
	c := Cause{Offset: -1}
	n := min(len(first), len(second))
	for i := range n {
		if first[i] != second[i] {
			if c.Offset < 0 {
				c.Offset = int64(i)
			}
			c.Bytes++
		}
	}
	c.Bytes += int64(max(len(first), len(second)) - n)
	if c.Offset < 0 {
		c.Offset = int64(n)
	}
	c.First, c.Second = show(first, c.Offset), show(second, c.Offset)
	return c
}

// show renders what is at an offset: the string it is in, if it is text, else a few bytes.
func show(b []byte, offset int64) string {
	at := int(offset)
	if at >= len(b) {
		return fmt.Sprintf("the end (%d bytes)", len(b))
	}
	start, end := at, at
	for start > 0 && printable(b[start-1]) && at-start < 60 {
		start--
	}
	for end < len(b) && printable(b[end]) && end-at < 60 {
		end++
	}
	if end-start >= 4 && end > at {
		return strconv.Quote(string(b[start:end]))
	}
	return fmt.Sprintf("% x", b[at:min(len(b), at+8)])
}

func printable(c byte) bool { return c >= ' ' && c < 0x7f }
