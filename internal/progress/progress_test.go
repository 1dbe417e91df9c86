package progress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	var out bytes.Buffer
	ctx, r := With(context.Background(), &out)
	task := Start(ctx, "fetch", 5)
	if b, err := io.ReadAll(task.Reader(strings.NewReader("12345"))); err != nil || len(b) != 5 {
		t.Errorf("reading through a task: %q, %v", b, err)
	}
	task.Done(nil)
	failing := StartSteps(ctx, "compile", 2)
	failing.Add(1)
	failing.Done(errors.New("no"))
	StartNoted(ctx, "replay", 3, func() string { return "fast" }).Drop()
	Logf(ctx, "note %d", 1)
	r.Close()
	got := out.String()
	if !strings.HasPrefix(got, "fetch: done (") || !strings.HasSuffix(got, "note 1\n") || strings.Contains(got, "compile: done") || strings.Contains(got, "replay") {
		t.Errorf("the log is %q", got)
	}
}

func TestNobodyWatches(t *testing.T) {
	ctx := context.Background()
	task := Start(ctx, "fetch", 5)
	task.Add(1)
	if r := strings.NewReader("x"); task.Reader(r) != r {
		t.Error("a task that nobody watches wraps readers")
	}
	task.Done(nil)
	Logf(ctx, "nothing")
}
