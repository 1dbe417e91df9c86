package release

import (
	"context"
	"errors"
	"slices"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/client"
	"github.com/enginery/enginery/internal/npm"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/toolchain"
)

// Exit statuses of the commands.
const (
	StatusFailed      = 1
	StatusUsage       = 2 // the command line makes no sense
	StatusDifferent   = 3 // something was made and is not what it must be
	StatusUnavailable = 4 // a source, package or program cannot be had
	StatusInterrupted = 130
)

// statusError is an error with an exit status, as Mage understands it.
type statusError struct {
	error
	status int
}

func (e *statusError) ExitStatus() int { return e.status }
func (e *statusError) Unwrap() error   { return e.error }

// WithStatus gives an error the exit status that it stands for.
func WithStatus(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted; what was finished is kept, and the same command goes on from there")
		return &statusError{err, StatusInterrupted}
	}
	return &statusError{err, Status(err)}
}

// severity orders exit statuses by how much they say: of several failures, the first of these is the status.
var severity = []int{StatusUsage, StatusDifferent, StatusFailed, StatusUnavailable, 0}

// Status returns the exit status that an error stands for: that of its ExitStatus method, if it has one. Of errors that are joined it is
// the most severe: that something cannot be had may hide nothing else.
func Status(err error) int {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		worst := len(severity) - 1
		for _, err := range several.Unwrap() {
			worst = min(worst, max(0, slices.Index(severity, Status(err))))
		}
		return severity[worst]
	}
	var (
		unknown     *recipes.UnknownError
		pin         *pins.ArgumentError
		otherPin    *pins.DifferentError
		tree        *pins.TreeError
		integrity   *npm.IntegrityError
		different   *DifferentError
		golden      *GoldenError
		failed      *build.FailedError
		sources     *pins.UnavailableError
		unreachable *pins.UnreachableError
		packages    *npm.UnavailableError
		compilers   *toolchain.UnavailableError
		program     *client.MissingError
		own         interface{ ExitStatus() int }
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own.ExitStatus()
	case errors.As(err, &unknown), errors.As(err, &pin):
		return StatusUsage
	case errors.As(err, &different), errors.As(err, &golden), errors.As(err, &otherPin), errors.As(err, &tree), errors.As(err, &integrity):
		return StatusDifferent
	case errors.As(err, &failed):
		return Status(failed)
	case errors.As(err, &sources), errors.As(err, &unreachable), errors.As(err, &packages), errors.As(err, &compilers), errors.As(err, &program):
		return StatusUnavailable
	}
	return StatusFailed
}
