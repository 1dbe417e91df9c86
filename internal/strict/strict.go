// Package strict decodes the project's TOML files and refuses everything that their schema does not know, with the
// file and the line.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Decode parses data, the content of the named file, into v. A key that v has no field for, a key given twice, a value of
// the wrong type and a syntax error are errors that begin with "file:line:column: ".
func Decode(file string, data []byte, v any) error {
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		e := unknown.Errors[0]
		row, col := e.Position()
		return fmt.Errorf("%s:%d:%d: unknown key %s", file, row, col, strings.Join(e.Key(), "."))
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return fmt.Errorf("%s:%d:%d: %s", file, row, col, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	if err != nil {
		return fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "toml: "))
	}
	return nil
}

// Errorf returns an error about the value of a key in data, the content of the named file: "file:line: …". The key is
// dotted; elements of an array of tables have an index, as in "source.1.url" for the second. Where the key is absent the line of
// its nearest table that is present is named, or the file alone.
func Errorf(file string, data []byte, key, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	if line := Line(data, key); line > 0 {
		return fmt.Errorf("%s:%d: %s", file, line, msg)
	}
	return fmt.Errorf("%s: %s", file, msg)
}

// Line returns the line, from 1, of a dotted key in data, or of its nearest table that is present, or 0.
func Line(data []byte, key string) int {
	lines := make(map[string]int)
	var p unstable.Parser
	p.Reset(data)
	table := ""
	counts := make(map[string]int)
	for p.NextExpression() {
		e := p.Expression()
		name, offset := keyOf(e.Key())
		line := 1 + bytes.Count(data[:min(offset, len(data))], []byte("\n"))
		switch e.Kind {
		case unstable.Table:
			table = resolve(name, counts)
			noteAll(lines, table, line)
		case unstable.ArrayTable:
			parent := resolve(name, counts)
			table = fmt.Sprintf("%s.%d", parent, counts[parent])
			counts[parent]++
			noteAll(lines, parent, line)
			note(lines, table, line)
		case unstable.KeyValue:
			full := join(table, name)
			note(lines, full, line)
			noteInline(lines, full, e.Value(), data)
		}
	}
	for key != "" {
		if line, ok := lines[key]; ok {
			return line
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 0
}

// resolve puts the index of the last element into the parts of a table's name that are arrays of tables.
func resolve(name string, counts map[string]int) string {
	parts := strings.Split(name, ".")
	at := ""
	for i, part := range parts {
		at = join(at, part)
		if n := counts[at]; n > 0 && i < len(parts)-1 {
			at = fmt.Sprintf("%s.%d", at, n-1)
		}
	}
	return at
}

func noteInline(lines map[string]int, prefix string, v *unstable.Node, data []byte) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			kv := it.Node()
			name, offset := keyOf(kv.Key())
			note(lines, join(prefix, name), 1+bytes.Count(data[:min(offset, len(data))], []byte("\n")))
			noteInline(lines, join(prefix, name), kv.Value(), data)
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			n := it.Node()
			at := fmt.Sprintf("%s.%d", prefix, i)
			if n.Raw.Length > 0 {
				note(lines, at, 1+bytes.Count(data[:min(int(n.Raw.Offset), len(data))], []byte("\n")))
			}
			noteInline(lines, at, n, data)
		}
	}
}

func keyOf(it unstable.Iterator) (name string, offset int) {
	for first := true; it.Next(); first = false {
		n := it.Node()
		if first {
			offset = int(n.Raw.Offset)
		}
		name = join(name, string(n.Data))
	}
	return name, offset
}

func join(table, key string) string {
	if table == "" {
		return key
	}
	return table + "." + key
}

func note(lines map[string]int, key string, line int) {
	if _, ok := lines[key]; !ok {
		lines[key] = line
	}
}

// noteAll notes a table and those around it, which a header creates where they are not there yet.
func noteAll(lines map[string]int, table string, line int) {
	for ; table != ""; table = table[:max(0, strings.LastIndexByte(table, '.'))] {
		note(lines, table, line)
	}
}
