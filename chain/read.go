package chain

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// Head returns the height and app hash of the last block.
func Head(ctx context.Context, r *swingstore.Reader) (height int64, appHash string, err error) {
	return head(ctx, r)
}
