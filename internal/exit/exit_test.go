package exit

import (
	"errors"
	"fmt"
	"testing"
)

// list is an error of several, as errors.Join makes it, but it may have none.
type list []error

func (l list) Error() string   { return fmt.Sprintf("%d errors", len(l)) }
func (l list) Unwrap() []error { return l }

func TestStatus(t *testing.T) {
	var (
		plain       = errors.New("plain")
		unavailable = &Error{errors.New("unavailable"), Unavailable}
		different   = &Error{errors.New("different"), Different}
		usage       = &Error{errors.New("usage"), Usage}
	)
	classify := func(err error) int {
		if _, ok := err.(list); ok {
			return Unavailable
		}
		return Failed
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{plain, Failed},
		{different, Different},
		{fmt.Errorf("wrapped: %w", different), Different},
		{errors.Join(unavailable, different), Different},
		{errors.Join(unavailable, plain), Failed},
		{errors.Join(different, plain, usage), Usage},
		{errors.Join(unavailable, errors.Join(unavailable, different)), Different},
		{list{}, Unavailable}, // a failure, although there is nothing in it
		{list{unavailable, list{}}, Unavailable},
		{list{list{}, plain}, Failed},
	} {
		if got := Status(c.err, classify); got != c.want {
			t.Errorf("%v: status %d, expected %d", c.err, got, c.want)
		}
	}
}
