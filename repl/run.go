// Package repl evaluates scripts for people: a file ([RunFile]), or line by line, on two engines side by side if need be ([Run]).
package repl

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/enginery/enginery/xsnap"
)

//go:embed harness.js
var harness string

// Result is what became of a script.
type Result struct {
	Version string      `json:"version"`
	Result  string      `json:"result"`
	Meter   xsnap.Meter `json:"meter"`
}

// RunFile evaluates a script on an engine. It writes what the script prints and the commands that it sends to printed, in the order in which
// they arrive, and then the script's value and meter to out, or a Result as JSON. An exception and the end of the worker are errors.
//
// The meter is that of the script alone. The value of a script is not something that a worker tells, unless it is an ArrayBuffer; so the script
// is evaluated once more to show it, in another worker, where it prints and sends nothing.
func RunFile(ctx context.Context, engine xsnap.Options, file string, asJSON bool, out, printed io.Writer) error {
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if engine.Snapshot != nil {
		return errors.New("a script is run on a fresh heap, and there is a heap snapshot")
	}
	reply, err := evaluate(ctx, engine, string(source), printed)
	if err != nil {
		return err
	}
	result := Result{Version: version(engine), Result: showBytes(reply.Payload), Meter: reply.Meter}
	if len(reply.Payload) == 0 {
		s := &side{o: engine, heard: io.Discard}
		defer s.kill()
		a, err := s.evaluate(ctx, string(source))
		if err != nil {
			return fmt.Errorf("once more, to show the value: %w", err)
		}
		result.Result = a.text
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(result)
	}
	_, err = fmt.Fprintf(out, "%s\n%s\n", result.Result, showMeter(result.Meter))
	return err
}

// version names an engine for people: by its version ID if it has one.
func version(engine xsnap.Options) string {
	switch {
	case engine.Version != "":
		return engine.Version
	case engine.Engine != nil:
		return engine.Engine.Version
	}
	return engine.Path
}

// evaluate evaluates a script as hosts do. What it prints is written before evaluate returns.
func evaluate(ctx context.Context, engine xsnap.Options, source string, printed io.Writer) (xsnap.Reply, error) {
	heard := &lockedWriter{w: printed}
	engine.Stdout = heard
	engine.Handle = func(_ context.Context, message []byte) ([]byte, error) {
		_, err := fmt.Fprintf(heard, "command: %s\n", showBytes(message))
		return nil, err
	}
	w, err := xsnap.Start(ctx, engine)
	if err != nil {
		return xsnap.Reply{}, err
	}
	defer w.Kill()
	reply, err := w.Evaluate(source)
	if err != nil {
		return xsnap.Reply{}, err
	}
	return reply, w.Close() // all is printed then
}

// showBytes returns bytes as they are if they are text that a terminal can be given, and in hex otherwise.
func showBytes(b []byte) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' }
	if utf8.Valid(b) && bytes.IndexFunc(b, odd) < 0 {
		return string(b)
	}
	return "0x" + hex.EncodeToString(b)
}

// showMeter writes a meter for people: "1,380,185 computrons, 42,074,144 bytes allocated, 103,930 slots (xs-meter-28)".
func showMeter(m xsnap.Meter) string {
	text := fmt.Sprintf("%s computrons, %s bytes allocated, %s slots", thousands(m.Compute), thousands(m.Allocate), thousands(m.HeapCount))
	if m.Type != "" {
		text += " (" + m.Type + ")"
	}
	return text
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}
