package release

import (
	"errors"

	"github.com/enginery/enginery/build"
	"github.com/enginery/enginery/internal/client"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/internal/npm"
	pins "github.com/enginery/enginery/moddable-pins"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/toolchain"
)

// WithStatus gives an error the exit status that it stands for.
func WithStatus(err error) error { return exit.With(err, status) }

// Status returns the exit status that an error stands for, see package exit.
func Status(err error) int { return exit.Status(err, status) }

func status(err error) int {
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
		registry    *repository.UnavailableError
		corrupt     *repository.CorruptError
	)
	switch {
	case errors.As(err, &unknown), errors.As(err, &pin):
		return exit.Usage
	case errors.As(err, &different), errors.As(err, &golden), errors.As(err, &otherPin), errors.As(err, &tree), errors.As(err, &integrity),
		errors.As(err, &corrupt):
		return exit.Different
	case errors.As(err, &failed):
		return Status(failed)
	case errors.As(err, &sources), errors.As(err, &unreachable), errors.As(err, &packages), errors.As(err, &compilers), errors.As(err, &program),
		errors.As(err, &registry):
		return exit.Unavailable
	}
	return exit.Failed
}
