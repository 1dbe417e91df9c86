package chain

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

// ErrNoBlock says that there is no block of a height, or that its record was not kept.
var ErrNoBlock = errors.New("no such block")

var errReadOnly = errors.New("the store is open for reading only")

// ReadBlock returns the record of a block.
func ReadBlock(ctx context.Context, r *swingstore.Reader, height int64) (*Block, error) {
	b := new(Block)
	ok, err := readJSON(ctx, r, blockKey(height), b)
	if err == nil && !ok {
		err = fmt.Errorf("%s: block %d: %w", r.Path(), height, ErrNoBlock)
	}
	return b, err
}

// Events returns what the upgrade controller has done in a block.
func Events(ctx context.Context, r *swingstore.Reader, height int64) ([]upgrade.Event, error) {
	text, err := r.Get(ctx, eventsKey(height))
	if errors.Is(err, swingstore.ErrNotFound) {
		err = fmt.Errorf("%s: block %d: %w", r.Path(), height, ErrNoBlock)
	}
	if err != nil {
		return nil, err
	}
	var events []upgrade.Event
	for d := json.NewDecoder(strings.NewReader(text)); d.More(); {
		var e upgrade.Event
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("%s: the events of block %d: %w", r.Path(), height, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// Inputs returns the inputs of a block, lines of JSON.
func Inputs(ctx context.Context, r *swingstore.Reader, height int64) ([]json.RawMessage, error) {
	text, err := r.Get(ctx, inputsKey(height))
	if errors.Is(err, swingstore.ErrNotFound) {
		err = fmt.Errorf("%s: block %d: %w", r.Path(), height, ErrNoBlock)
	}
	if err != nil {
		return nil, err
	}
	var lines []json.RawMessage
	s := bufio.NewScanner(strings.NewReader(text))
	s.Buffer(nil, Line)
	for s.Scan() {
		lines = append(lines, json.RawMessage(strings.Clone(s.Text())))
	}
	return lines, s.Err()
}

// Kept returns the heights of the first and the last block whose record is kept: 1 and 0 if there is none.
func Kept(ctx context.Context, r *swingstore.Reader) (first, last int64, err error) {
	if last, _, err = head(ctx, r); err != nil {
		return 0, 0, err
	}
	first, err = firstKept(ctx, r)
	return max(first, 1), last, err
}

// firstKept returns the height of the first block whose record is kept, or 0.
func firstKept(ctx context.Context, r *swingstore.Reader) (int64, error) {
	prefix := strings.TrimSuffix(blockKey(0), digits(0))
	key, err := r.NextKey(ctx, prefix)
	if err != nil {
		return 0, err
	}
	height, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return 0, nil
	}
	return strconv.ParseInt(height, 10, 64)
}

// Head returns the height and app hash of the last block.
func Head(ctx context.Context, r *swingstore.Reader) (height int64, appHash string, err error) {
	return head(ctx, r)
}
