package replay

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/enginery/enginery/vat"
)

// matcher answers a delivery's syscalls from the transcript, and finds what differs. After a difference it goes on as well as it can:
// it looks for the recorded syscall that the worker may mean, so that one difference does not make a difference of all that follows.
type matcher struct {
	entry *vat.Entry
	used  []bool    // by recorded syscall; nil as long as all were made in order
	next  int       // the first after all that were made
	wrong []pairing // taken for each other
	found []finding

	made int
}

// pairing is a syscall that was answered as the recorded one in its place, though it is another.
type pairing struct {
	index int // of the recorded one
	got   []byte
	at    int // index into found
}

// finding is a difference of a syscall.
type finding struct {
	dimension     Dimension
	index         int
	expected, got []byte
}

// nothing is what the kernel answers when there is nothing to say.
var nothing = []byte(`["ok",null]`)

func (m *matcher) syscall(got []byte) []byte {
	m.made++
	all := m.entry.Syscalls
	if m.used == nil {
		if m.next < len(all) && same(all[m.next].Syscall, got) {
			m.next++
			return all[m.next-1].Answer
		}
		m.used = make([]bool, len(all))
		for i := range m.next {
			m.used[i] = true
		}
	}
	take := func(i int) []byte {
		m.used[i] = true
		m.next = max(m.next, i+1)
		return all[i].Answer
	}
	for i := m.next; i < len(all); i++ {
		if same(all[i].Syscall, got) {
			return take(i) // what was passed over may come later, or is missing
		}
	}
	for i, p := range m.wrong {
		if same(all[p.index].Syscall, got) { // so the other was made besides it
			m.found[p.at] = finding{dimension: ExtraSyscall, index: p.index, got: p.got}
			m.wrong = slices.Delete(m.wrong, i, i+1)
			return all[p.index].Answer
		}
	}
	for i := range m.next {
		if !m.used[i] && same(all[i].Syscall, got) {
			d := MisplacedSyscall
			if m.mayBeLate(i) {
				d = ReorderedSyscall
			}
			m.found = append(m.found, finding{d, i, all[i].Syscall, got})
			return take(i)
		}
	}
	got = bytes.Clone(got)
	for i := range all {
		if !m.used[i] && kindOf(all[i].Syscall) == kindOf(got) {
			if sameSet(all[i].Syscall, got) {
				m.found = append(m.found, finding{ReorderedSyscall, i, all[i].Syscall, got})
				return take(i)
			}
			if i != m.next {
				continue
			}
			m.wrong = append(m.wrong, pairing{i, got, len(m.found)})
			m.found = append(m.found, finding{WrongSyscall, i, all[i].Syscall, got})
			return take(i)
		}
	}
	m.found = append(m.found, finding{dimension: ExtraSyscall, index: m.made - 1, got: got})
	return nothing
}

// finish returns all differences, when the delivery has ended.
func (m *matcher) finish() []finding {
	if m.used == nil {
		for i := m.next; i < len(m.entry.Syscalls); i++ {
			m.found = append(m.found, finding{dimension: MissingSyscall, index: i, expected: m.entry.Syscalls[i].Syscall})
		}
		return m.found
	}
	for i, used := range m.used {
		if !used {
			m.found = append(m.found, finding{dimension: MissingSyscall, index: i, expected: m.entry.Syscalls[i].Syscall})
		}
	}
	return m.found
}

// mayBeLate reports whether it makes no difference that a recorded syscall comes only now: it, or all that came before it, reads or collects
// garbage, and none of the two writes what the other reads.
func (m *matcher) mayBeLate(late int) bool {
	l := m.entry.Syscalls[late].Syscall
	for i := late + 1; i < m.next; i++ {
		if !m.used[i] {
			continue
		}
		s := m.entry.Syscalls[i].Syscall
		if !mayMove(l) && !mayMove(s) || conflict(l, s) || conflict(s, l) {
			return false
		}
	}
	return true
}

// mayMove reports whether a syscall may come in another order at the level SameOutcome.
func mayMove(syscall []byte) bool {
	switch kindOf(syscall) {
	case "vatstoreGet", "vatstoreGetNextKey", "dropImports", "retireImports", "retireExports", "abandonExports":
		return true
	}
	return false
}

// conflict reports whether one syscall reads of the vatstore what the other writes.
func conflict(read, write []byte) bool {
	switch kindOf(write) {
	case "vatstoreSet", "vatstoreDelete":
		switch kindOf(read) {
		case "vatstoreGet":
			return argument(read) == argument(write)
		case "vatstoreGetNextKey":
			return true
		}
	}
	return false
}

// kindOf returns the kind of a syscall or delivery, ["kind",…] in JSON.
func kindOf(array []byte) string {
	rest, ok := bytes.CutPrefix(array, []byte(`["`))
	if i := bytes.IndexByte(rest, '"'); ok && i >= 0 {
		return string(rest[:i])
	}
	return ""
}

// argument returns a syscall's first argument.
func argument(syscall []byte) string {
	var list []json.RawMessage
	if json.Unmarshal(syscall, &list) != nil || len(list) < 2 {
		return ""
	}
	return string(list[1])
}

// same reports whether two texts in JSON are the same but for the order of keys, as the kernel compares syscalls.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	// A key is in an object, and the same text in another order has the same length.
	if len(a) != len(b) || bytes.IndexByte(a, '{') < 0 {
		return false
	}
	va, vb := decode(a), decode(b)
	return va != nil && reflect.DeepEqual(va, vb)
}

func decode(text []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

// sameSet reports whether two syscalls of garbage collection name the same objects, in whatever order.
func sameSet(a, b []byte) bool {
	set := func(syscall []byte) []string {
		var list []json.RawMessage
		var refs []string
		if !mayMove(syscall) || json.Unmarshal(syscall, &list) != nil || len(list) != 2 || json.Unmarshal(list[1], &refs) != nil {
			return nil
		}
		slices.Sort(refs)
		return refs
	}
	sa := set(a)
	return sa != nil && slices.Equal(sa, set(b))
}

// shorten keeps the two ends of a text that is very long, and where two texts part.
func shorten(expected, got string) (string, string) {
	const limit, around = 4 << 10, 1 << 10
	if len(expected) <= limit && len(got) <= limit {
		return expected, got
	}
	part := 0
	for part < len(expected) && part < len(got) && expected[part] == got[part] {
		part++
	}
	cut := func(s string) string {
		if len(s) <= limit {
			return s
		}
		from, to := max(0, part-around), min(len(s), part+around)
		var b strings.Builder
		if from > around {
			b.WriteString(strings.ToValidUTF8(s[:around], "") + " … ")
		} else {
			from = 0
		}
		b.WriteString(strings.ToValidUTF8(s[from:to], ""))
		if to < len(s) {
			b.WriteString(" …")
		}
		return b.String()
	}
	return cut(expected), cut(got)
}
