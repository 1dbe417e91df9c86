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

// finding is a Cause with what it is to the program.
type finding struct {
	Cause
	rank int
}

const (
	resized  = iota // it is new, gone or has another size, so that what follows it may be elsewhere, and what refers to that may differ
	changed         // it is loaded when the program runs
	describe        // it only describes what is loaded: symbol tables, debug information
)

// Explain says where two versions of a file differ: symbol by symbol, or else section by section, for ELF files; otherwise at the
// first byte. What probably is the reason for other differences comes first.
func Explain(first, second []byte) []Cause {
	if bytes.Equal(first, second) {
		return nil
	}
	a, aerr := elf.NewFile(bytes.NewReader(first))
	b, berr := elf.NewFile(bytes.NewReader(second))
	if aerr != nil || berr != nil {
		return []Cause{compare(first, second)}
	}
	var all []finding
	add := func(s *elf.Section, found ...finding) {
		for _, f := range found {
			f.Section = s.Name
			if s.Flags&elf.SHF_ALLOC == 0 {
				f.rank = describe
			}
			all = append(all, f)
		}
	}
	for _, s := range a.Sections {
		switch t := b.Section(s.Name); {
		case t == nil:
			add(s, finding{Cause{Bytes: int64(s.Size), First: size(s.Size), Second: "no such section"}, resized})
		case s.Type == elf.SHT_NULL:
		case s.Type == elf.SHT_NOBITS || t.Type == elf.SHT_NOBITS:
			if s.Size != t.Size {
				differ := max(int64(s.Size), int64(t.Size)) - min(int64(s.Size), int64(t.Size))
				add(s, finding{Cause{Bytes: differ, First: size(s.Size), Second: size(t.Size)}, resized})
			}
		default:
			add(s, compareSections(a, s, b, t)...)
		}
	}
	for _, t := range b.Sections {
		if a.Section(t.Name) == nil {
			add(t, finding{Cause{Bytes: int64(t.Size), First: "no such section", Second: size(t.Size)}, resized})
		}
	}
	if len(all) == 0 { // headers or padding
		return []Cause{compare(first, second)}
	}
	slices.SortStableFunc(all, func(a, b finding) int { return a.rank - b.rank })
	causes := make([]Cause, len(all))
	for i, f := range all {
		causes[i] = f.Cause
	}
	return causes
}

func size(n uint64) string { return fmt.Sprintf("%d bytes", n) }

func compareSections(a *elf.File, s *elf.Section, b *elf.File, t *elf.Section) []finding {
	x, err := s.Data()
	if err != nil {
		return []finding{{Cause{Bytes: int64(s.Size), First: err.Error()}, changed}}
	}
	y, err := t.Data()
	if err != nil {
		return []finding{{Cause{Bytes: int64(t.Size), Second: err.Error()}, changed}}
	}
	if bytes.Equal(x, y) {
		return nil
	}
	xs := symbolsOf(a, s)
	found := compareSymbols(x, xs, y, symbolsOf(b, t))
	if len(x) == len(y) { // then what is in no symbol can be compared, too, such as string literals
		rest := slices.Clone(y)
		for _, sym := range xs {
			copy(rest[sym.start:sym.end], x[sym.start:sym.end])
		}
		if !bytes.Equal(x, rest) {
			found = append(found, finding{compare(x, rest), changed})
		}
	}
	if len(found) == 0 {
		found = append(found, finding{compare(x, y), changed})
	}
	return found
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
func compareSymbols(x []byte, xs []symbol, y []byte, ys []symbol) []finding {
	inX, inY := index(xs), index(ys)
	var found []finding
	only := func(k key, s symbol, first, second string) {
		found = append(found, finding{Cause{Symbol: k.name, Offset: s.start, Bytes: s.end - s.start, First: first, Second: second}, resized})
	}
	covered := int64(-1) // aliases have the same range
	for _, k := range keysOf(xs) {
		s := inX[k]
		t, ok := inY[k]
		if !ok {
			only(k, s, size(uint64(s.end-s.start)), "no such symbol")
			continue
		}
		if s.end <= covered || bytes.Equal(x[s.start:s.end], y[t.start:t.end]) {
			continue
		}
		covered = s.end
		f := finding{compare(x[s.start:s.end], y[t.start:t.end]), changed}
		f.Symbol = k.name
		f.Offset += s.start
		if s.end-s.start != t.end-t.start {
			f.rank = resized
		}
		found = append(found, f)
	}
	for _, k := range keysOf(ys) {
		if _, ok := inX[k]; !ok {
			t := inY[k]
			only(k, t, "no such symbol", size(uint64(t.end-t.start)))
		}
	}
	slices.SortStableFunc(found, func(a, b finding) int { return a.rank - b.rank })
	if len(found) <= maxSymbols {
		return found
	}
	last := found[maxSymbols]
	for _, f := range found[maxSymbols+1:] {
		last.Bytes += f.Bytes
	}
	last.Symbol = fmt.Sprintf("%s and %d others", last.Symbol, len(found)-maxSymbols-1)
	return append(found[:maxSymbols], last)
}

// keysOf returns the keys of symbols, in their order.
func keysOf(symbols []symbol) []key {
	count := make(map[string]int)
	all := make([]key, len(symbols))
	for i, s := range symbols {
		all[i] = key{s.name, count[s.name]}
		count[s.name]++
	}
	return all
}

func index(symbols []symbol) map[key]symbol {
	m := make(map[key]symbol)
	for i, k := range keysOf(symbols) {
		m[k] = symbols[i]
	}
	return m
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
