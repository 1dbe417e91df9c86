package main

import (
	"errors"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/internal/exit"
	"github.com/enginery/enginery/manifests"
	"github.com/enginery/enginery/releaseindex"
	"github.com/enginery/enginery/repository"
	"github.com/enginery/enginery/resolver"
	"github.com/enginery/enginery/trust"
)

// status returns the exit status of a library's error. Errors of a command's own have a method ExitStatus, or are an *exit.Error.
func status(err error) int {
	var (
		notInService *engines.NotInServiceError
		refused      *trust.RefusedError
		unexpected   *resolver.UnexpectedError
		damaged      *engines.DamagedError
		corrupt      *repository.CorruptError
		inLayout     *artifact.CorruptError
		noVersion    *resolver.NoVersionError
		sources      *resolver.UnavailableError
		unreachable  *repository.UnavailableError
	)
	switch {
	case errors.As(err, &notInService), errors.Is(err, engines.ErrVersion), errors.Is(err, manifests.ErrNotRecorded):
		return exit.Usage
	case errors.As(err, &refused), errors.As(err, &unexpected), errors.As(err, &damaged), errors.As(err, &corrupt), errors.As(err, &inLayout),
		errors.As(err, &noVersion), errors.Is(err, releaseindex.ErrRollback), errors.Is(err, releaseindex.ErrExpired),
		errors.Is(err, releaseindex.ErrSignature), errors.Is(err, releaseindex.ErrMixed), errors.Is(err, releaseindex.ErrIncomplete),
		errors.Is(err, releaseindex.ErrForked), errors.Is(err, releaseindex.ErrMalformed):
		return exit.Different
	case errors.As(err, &sources), errors.As(err, &unreachable), errors.Is(err, repository.ErrNotFound), errors.Is(err, engines.ErrNotInstalled):
		return exit.Unavailable
	}
	return exit.Failed
}
