package build

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestJobsAreABudget(t *testing.T) {
	j, err := NewJobs(2)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for range 2 {
		if err := j.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := j.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third token: %v, want the context's error", err)
	}
	if err := j.release(); err != nil {
		t.Fatal(err)
	}
	if err := j.acquire(t.Context()); err != nil {
		t.Errorf("a returned token: %v", err)
	}
	if _, err := NewJobs(0); err == nil {
		t.Error("a budget of no jobs was accepted")
	}
}
