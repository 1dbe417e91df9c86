// Package exit has the exit statuses of the commands, and picks that of several errors.
package exit

import (
	"context"
	"errors"
	"slices"
)

// Exit statuses.
const (
	Failed      = 1
	Usage       = 2 // the command line makes no sense
	Different   = 3 // something is there and is not what it must be
	Unavailable = 4 // something cannot be had
	Interrupted = 130
)

// severity orders exit statuses by how much they say: of several failures, the first of these is the status.
var severity = []int{Usage, Different, Failed, Unavailable, 0}

// Status returns the exit status that an error stands for. It is that of its ExitStatus method, if it has one, or else what classify says of
// it. Of errors that are joined it is the most severe: that something cannot be had may hide nothing else. It is 0 for no error only.
func Status(err error, classify func(error) int) int {
	if err == nil {
		return 0
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok && len(several.Unwrap()) > 0 {
		worst := len(severity) - 1
		for _, err := range several.Unwrap() {
			worst = min(worst, max(0, slices.Index(severity, Status(err, classify))))
		}
		return severity[worst]
	}
	var own interface{ ExitStatus() int }
	if errors.As(err, &own) {
		return own.ExitStatus()
	}
	return classify(err)
}

// Error is an error with an exit status.
type Error struct {
	Err  error
	Code int
}

func (e *Error) Error() string   { return e.Err.Error() }
func (e *Error) Unwrap() error   { return e.Err }
func (e *Error) ExitStatus() int { return e.Code }

// With gives an error the exit status that it stands for. An interruption, which is a context's end, gets a text for people.
func With(err error, classify func(error) int) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return &Error{errors.New("interrupted; what was finished is kept, and the same command goes on from there"), Interrupted}
	}
	return &Error{err, Status(err, classify)}
}
