package build

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Jobs is a budget of CPUs that all compilations share: a GNU make jobserver (GNU make manual, "POSIX Jobserver
// Interaction"). A compilation takes one token to start; the make inside takes further ones for its parallel jobs.
type Jobs struct {
	r, w *os.File // the pipe, blocking, as make wants it
	n    int
}

// NewJobs returns a budget of n jobs, n > 0.
func NewJobs(n int) (*Jobs, error) {
	if n < 1 {
		return nil, fmt.Errorf("a budget of %d jobs: expected at least 1", n)
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("making a jobserver: %w", err)
	}
	j := &Jobs{r: os.NewFile(uintptr(fds[0]), "jobserver"), w: os.NewFile(uintptr(fds[1]), "jobserver"), n: n}
	for range n {
		if err := j.release(); err != nil {
			j.Close()
			return nil, err
		}
	}
	return j, nil
}

// Close ends the budget.
func (j *Jobs) Close() {
	j.r.Close()
	j.w.Close()
}

// acquire waits for a token.
func (j *Jobs) acquire(ctx context.Context) error {
	// Each wait has a description of its own, since the end of one context must not disturb the others' reads.
	r, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", j.r.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("waiting for a job token: %w", err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var token [1]byte
	if _, err := r.Read(token[:]); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("waiting for a job token: %w", err)
	}
	return nil
}

func (j *Jobs) release() error {
	if _, err := j.w.Write([]byte{'+'}); err != nil {
		return fmt.Errorf("returning a job token: %w", err)
	}
	return nil
}

// makeflags returns the environment variable that tells make of the budget, whose two ends are descriptors 3 and 4.
func (j *Jobs) makeflags() string {
	return fmt.Sprintf("MAKEFLAGS= -j%d --jobserver-auth=3,4", j.n)
}
