package swingstore

import (
	"context"
	"database/sql"
	"sync"
)

// querier is what can be read with: statements, a pool of connections or one.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// statements compiles each query once for a connection, which takes longer than to run a short one.
type statements struct {
	on interface { // a connection, or a pool of them
		querier
		PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	}

	mu  sync.Mutex
	all map[string]*sql.Stmt // by query; all of them are texts of this package
}

func (s *statements) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stmt := s.all[query]
	if stmt == nil {
		var err error
		if stmt, err = s.on.PrepareContext(ctx, query); err != nil {
			return nil, err
		}
		if s.all == nil {
			s.all = make(map[string]*sql.Stmt)
		}
		s.all[query] = stmt
	}
	return stmt, nil
}

func (s *statements) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	stmt, err := s.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

func (s *statements) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	stmt, err := s.prepare(ctx, query)
	if err != nil {
		return s.on.QueryRowContext(ctx, query, args...) // which fails likewise
	}
	return stmt.QueryRowContext(ctx, args...)
}

// close closes them. Those of one connection would outlive it, and SQLite would keep the store open for them.
func (s *statements) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stmt := range s.all {
		stmt.Close()
	}
	s.all = nil
}
