package vat

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// normal appends to dst what JSON.stringify(JSON.parse(text)) is in JavaScript: a transcript's text has gone through that, and is hashed.
// Keys that are array indexes come first, the last of equal keys wins, numbers and strings are written in one way only.
func normal(dst, text []byte) ([]byte, error) {
	p := parser{text: text}
	dst, err := p.value(dst, 0)
	if err == nil {
		if p.space(); p.at != len(text) {
			err = errors.New("something follows")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("byte %d of %d is not JSON: %w", p.at, len(text), err)
	}
	return dst, nil
}

const maxDepth = 5000 // of nesting

type parser struct {
	text []byte
	at   int
}

func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next returns the next byte that is not space, without taking it; 0 at the end.
func (p *parser) next() byte {
	p.space()
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

func (p *parser) value(dst []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("more than %d values are in one another", maxDepth)
	}
	switch c := p.next(); {
	case c == '{':
		return p.object(dst, depth)
	case c == '[':
		p.at++
		dst = append(dst, '[')
		for first := true; ; first = false {
			c := p.next()
			if c == ']' && first {
				break
			}
			var err error
			if dst, err = p.value(dst, depth+1); err != nil {
				return nil, err
			}
			if c = p.next(); c == ']' {
				break
			} else if c != ',' {
				return nil, errors.New(`expected "," or "]"`)
			}
			p.at++
			dst = append(dst, ',')
		}
		p.at++
		return append(dst, ']'), nil
	case c == '"':
		return p.string(dst)
	case c == '-' || '0' <= c && c <= '9':
		return p.number(dst)
	}
	for _, word := range []string{"null", "true", "false"} {
		if len(p.text)-p.at >= len(word) && string(p.text[p.at:p.at+len(word)]) == word {
			p.at += len(word)
			return append(dst, word...), nil
		}
	}
	return nil, errors.New("expected a value")
}

type member struct {
	key, value []byte // as they are written
	index      uint32
	isIndex    bool
}

func (p *parser) object(dst []byte, depth int) ([]byte, error) {
	p.at++
	start := len(dst)
	dst = append(dst, '{')
	var members []member // offsets could move with dst, so these are filled in at the end
	var ends []int       // of key and value, relative to start
	plain := true        // as it stands, it is in order
	for first := true; ; first = false {
		c := p.next()
		if c == '}' && first {
			break
		} else if c != '"' {
			return nil, errors.New("expected a key")
		}
		from := len(dst)
		var err error
		if dst, err = p.string(dst); err != nil {
			return nil, err
		}
		keyEnd := len(dst)
		if k := dst[from+1]; '0' <= k && k <= '9' {
			plain = false
		}
		if p.next() != ':' {
			return nil, errors.New(`expected ":"`)
		}
		p.at++
		dst = append(dst, ':')
		if dst, err = p.value(dst, depth+1); err != nil {
			return nil, err
		}
		ends = append(ends, from, keyEnd, len(dst))
		if c = p.next(); c == '}' {
			break
		} else if c != ',' {
			return nil, errors.New(`expected "," or "}"`)
		}
		p.at++
		dst = append(dst, ',')
	}
	p.at++
	dst = append(dst, '}')
	for i := 0; i < len(ends); i += 3 {
		m := member{key: dst[ends[i]:ends[i+1]], value: dst[ends[i+1]+1 : ends[i+2]]}
		m.index, m.isIndex = arrayIndex(m.key)
		members = append(members, m)
	}
	if plain && !doubled(members) {
		return dst, nil
	}
	var order []member
	at := make(map[string]int, len(members))
	for _, m := range members {
		if i, ok := at[string(m.key)]; ok {
			order[i].value = m.value
			continue
		}
		at[string(m.key)] = len(order)
		order = append(order, m)
	}
	slices.SortStableFunc(order, func(a, b member) int {
		switch {
		case a.isIndex && b.isIndex:
			return int(int64(a.index) - int64(b.index))
		case a.isIndex:
			return -1
		case b.isIndex:
			return 1
		}
		return 0
	})
	out := []byte{'{'}
	for i, m := range order {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, m.key...), ':'), m.value...)
	}
	return append(append(dst[:start], out...), '}'), nil
}

func doubled(members []member) bool {
	if len(members) <= 16 {
		for i, m := range members {
			for _, other := range members[:i] {
				if string(m.key) == string(other.key) {
					return true
				}
			}
		}
		return false
	}
	seen := make(map[string]bool, len(members))
	for _, m := range members {
		if seen[string(m.key)] {
			return true
		}
		seen[string(m.key)] = true
	}
	return false
}

// arrayIndex returns what a key, in quotation marks, is as an index of an array: less than 2^32-1.
func arrayIndex(key []byte) (uint32, bool) {
	digits := string(key[1 : len(key)-1])
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32 && strconv.FormatUint(n, 10) == digits
}

func (p *parser) number(dst []byte) ([]byte, error) {
	start := p.at
	digits := func() bool {
		from := p.at
		for p.at < len(p.text) && '0' <= p.text[p.at] && p.text[p.at] <= '9' {
			p.at++
		}
		return p.at > from
	}
	is := func(set string) bool {
		if p.at < len(p.text) {
			for _, c := range []byte(set) {
				if p.text[p.at] == c {
					p.at++
					return true
				}
			}
		}
		return false
	}
	negative := is("-")
	first := p.at
	if !digits() || p.text[first] == '0' && p.at > first+1 {
		return nil, errors.New("expected a number")
	}
	integer := p.at - first
	simple := integer <= 15 && !(negative && p.text[first] == '0')
	if is(".") {
		if simple = false; !digits() {
			return nil, errors.New("expected a digit")
		}
	}
	if is("eE") {
		simple = false
		is("+-")
		if !digits() {
			return nil, errors.New("expected a digit")
		}
	}
	text := p.text[start:p.at]
	if simple {
		return append(dst, text...), nil
	}
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return nil, err
	}
	return appendNumber(dst, f), nil
}

// appendNumber is JSON.stringify (ECMA-262, Number::toString).
func appendNumber(dst []byte, f float64) []byte {
	switch {
	case math.IsInf(f, 0):
		return append(dst, "null"...)
	case f == 0:
		return append(dst, '0')
	case math.Abs(f) < 1e21 && math.Abs(f) >= 1e-6:
		return strconv.AppendFloat(dst, f, 'f', -1, 64)
	}
	dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
	if n := len(dst); dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') { // 1e-07
		dst[n-2] = dst[n-1]
		dst = dst[:n-1]
	}
	return dst
}

func (p *parser) string(dst []byte) ([]byte, error) {
	p.at++
	dst = append(dst, '"')
	for {
		from := p.at
		for p.at < len(p.text) {
			if c := p.text[p.at]; c == '"' || c == '\\' || c < ' ' || c >= utf8.RuneSelf {
				break
			}
			p.at++
		}
		dst = append(dst, p.text[from:p.at]...)
		if p.at == len(p.text) {
			return nil, errors.New("a string has no end")
		}
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return append(dst, '"'), nil
		case c < ' ':
			return nil, errors.New("a control character is in a string")
		case c == '\\':
			unit, err := p.escape()
			if err != nil {
				return nil, err
			}
			if 0xd800 <= unit && unit < 0xdc00 {
				if rest := p.text[p.at:]; len(rest) > 1 && rest[0] == '\\' && rest[1] == 'u' {
					before := p.at
					low, err := p.escape()
					if err != nil {
						return nil, err
					}
					if 0xdc00 <= low && low < 0xe000 {
						dst = utf8.AppendRune(dst, (unit-0xd800)<<10+(low-0xdc00)+0x10000)
						continue
					}
					p.at = before
				}
			}
			dst = appendUnit(dst, unit)
		default:
			r, size := utf8.DecodeRune(p.text[p.at:])
			if r == utf8.RuneError && size <= 1 {
				size = subpart(p.text[p.at:])
			}
			dst = utf8.AppendRune(dst, r)
			p.at += size
		}
	}
}

// subpart returns how many bytes at the start of text a TextDecoder replaces by one U+FFFD.
func subpart(text []byte) int {
	low, high, more := byte(0x80), byte(0xbf), 0
	switch c := text[0]; {
	case 0xc2 <= c && c <= 0xdf:
		more = 1
	case 0xe0 <= c && c <= 0xef:
		more = 2
		if c == 0xe0 {
			low = 0xa0
		} else if c == 0xed {
			high = 0x9f
		}
	case 0xf0 <= c && c <= 0xf4:
		more = 3
		if c == 0xf0 {
			low = 0x90
		} else if c == 0xf4 {
			high = 0x8f
		}
	}
	n := 1
	for n <= more && n < len(text) && low <= text[n] && text[n] <= high {
		low, high = 0x80, 0xbf
		n++
	}
	return n
}

// escape takes an escape sequence and returns the code unit that it stands for.
func (p *parser) escape() (rune, error) {
	if p.at+1 >= len(p.text) {
		return 0, errors.New("a string has no end")
	}
	c := p.text[p.at+1]
	p.at += 2
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		if len(p.text)-p.at >= 4 {
			unit := rune(0)
			for _, c := range p.text[p.at : p.at+4] {
				switch {
				case '0' <= c && c <= '9':
					c -= '0'
				case 'a' <= c|0x20 && c|0x20 <= 'f':
					c = c | 0x20 - 'a' + 10
				default:
					return 0, errors.New("an escape sequence does not have four hexadecimal digits")
				}
				unit = unit<<4 | rune(c)
			}
			p.at += 4
			return unit, nil
		}
	}
	return 0, errors.New("there is no such escape sequence")
}

// appendUnit appends a code unit to a string in JSON. Half of a pair stays an escape sequence.
func appendUnit(dst []byte, unit rune) []byte {
	switch unit {
	case '"', '\\':
		return append(dst, '\\', byte(unit))
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	if unit < ' ' || 0xd800 <= unit && unit < 0xe000 {
		return fmt.Appendf(dst, `\u%04x`, unit)
	}
	return utf8.AppendRune(dst, unit)
}

// appendString appends a string in JSON.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, r := range s {
		dst = appendUnit(dst, r)
	}
	return append(dst, '"')
}
