package reproduce

import (
	"bytes"
	"debug/elf"
	"fmt"
	"sort"
	"strconv"
)

// Cause is one place in which two builds of a file differ.
type Cause struct {
	Section string `json:"section,omitempty"` // ELF section, if the file is an ELF file
	Symbol  string `json:"symbol,omitempty"`  // the function or variable there, if the file has symbols
	Offset  int64  `json:"offset"`            // of the first differing byte, in the section or file
	Bytes   int64  `json:"bytes"`             // how many bytes differ
	First   string `json:"first"`             // what the first build has there
	Second  string `json:"second"`            // what the second has
}

func (c Cause) String() string {
	where := "at offset " + strconv.FormatInt(c.Offset, 10)
	if c.Section != "" {
		where = fmt.Sprintf("in section %s, offset %d", c.Section, c.Offset)
	}
	if c.Symbol != "" {
		where += " (" + c.Symbol + ")"
	}
	return fmt.Sprintf("%d bytes differ %s: %s against %s", c.Bytes, where, c.First, c.Second)
}

// Explain says where two versions of a file differ: section by section for ELF files, otherwise at the first byte. Sections
// with content come before those that only describe it, since a difference in the former usually causes those in the latter.
func Explain(first, second []byte) []Cause {
	if bytes.Equal(first, second) {
		return nil
	}
	a, aerr := elf.NewFile(bytes.NewReader(first))
	b, berr := elf.NewFile(bytes.NewReader(second))
	if aerr != nil || berr != nil {
		return []Cause{compare("", first, second, nil)}
	}
	var causes []Cause
	inB := make(map[string]*elf.Section)
	for _, s := range b.Sections {
		inB[s.Name] = s
	}
	seen := make(map[string]bool)
	flags := make(map[string]elf.SectionFlag)
	for _, s := range a.Sections {
		seen[s.Name] = true
		flags[s.Name] = s.Flags
		other := inB[s.Name]
		if other == nil {
			causes = append(causes, Cause{Section: s.Name, Bytes: int64(s.Size), First: fmt.Sprintf("%d bytes", s.Size), Second: "no such section"})
			continue
		}
		if s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL {
			if s.Size != other.Size {
				causes = append(causes, Cause{Section: s.Name, First: fmt.Sprintf("%d bytes", s.Size), Second: fmt.Sprintf("%d bytes", other.Size)})
			}
			continue
		}
		x, xerr := s.Data()
		y, yerr := other.Data()
		if xerr == nil && yerr == nil && !bytes.Equal(x, y) {
			c := compare(s.Name, x, y, symbolsOf(a, s))
			causes = append(causes, c)
		}
	}
	for _, s := range b.Sections {
		if !seen[s.Name] {
			causes = append(causes, Cause{Section: s.Name, Bytes: int64(s.Size), First: "no such section", Second: fmt.Sprintf("%d bytes", s.Size)})
		}
	}
	if len(causes) == 0 { // headers or padding
		causes = append(causes, compare("", first, second, nil))
	}
	sort.SliceStable(causes, func(i, j int) bool {
		return flags[causes[i].Section]&elf.SHF_ALLOC != 0 && flags[causes[j].Section]&elf.SHF_ALLOC == 0
	})
	return causes
}

// symbol is a named range of a section.
type symbol struct {
	name       string
	start, end int64
}

func symbolsOf(f *elf.File, s *elf.Section) []symbol {
	all, err := f.Symbols()
	if err != nil {
		return nil
	}
	var in []symbol
	for _, sym := range all {
		if int(sym.Section) < len(f.Sections) && f.Sections[sym.Section] == s && sym.Size > 0 {
			start := int64(sym.Value - s.Addr)
			in = append(in, symbol{sym.Name, start, start + int64(sym.Size)})
		}
	}
	return in
}

func compare(section string, first, second []byte, symbols []symbol) Cause {
	c := Cause{Section: section, Offset: -1}
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
	for _, s := range symbols {
		if s.start <= c.Offset && c.Offset < s.end {
			c.Symbol = s.name
		}
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
