package chain

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Line is the longest line of an input, in bytes: a bundle has to fit.
const Line = 64 << 20

// Feed makes the blocks that a file says: inputs, one a line, and lines of BlockType. What is in the chain already is not done again, so a
// file can be fed from its beginning any number of times; an input for a block that was made without it is an error. Inputs after the last
// BlockType are a last block. Files that bundles are named by are in dir. Each block is reported.
func (n *Node) Feed(ctx context.Context, r io.Reader, dir string, report func(*Block)) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, Line)
	var inputs []*Input
	height := int64(0) // of the last block that the file has told of
	end := func(to int64) error {
		first := height + 1
		height = to
		if n.height >= first && len(inputs) > 0 {
			if err := n.made(ctx, first, inputs); err != nil {
				return err
			}
		}
		for n.height < to {
			if n.height >= first { // its inputs are in an earlier one
				inputs = nil
			}
			b, err := n.Make(ctx, inputs)
			if err != nil {
				return err
			}
			if inputs = nil; report != nil {
				report(b)
			}
		}
		inputs = nil
		return nil
	}
	line := 0
	for s.Scan() {
		line++
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		in, err := ReadInput(s.Bytes(), dir)
		if err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
		if in.Type != BlockType {
			inputs = append(inputs, in)
			continue
		}
		to := in.Height
		if to == 0 {
			to = height + 1
		}
		if to <= height {
			return fmt.Errorf("line %d: it ends block %d, and an earlier line block %d", line, to, height)
		}
		if err := end(to); err != nil {
			return err
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("line %d: it is longer than %d bytes", line+1, Line)
	} else if err != nil {
		return fmt.Errorf("line %d: %w", line+1, err)
	}
	if len(inputs) > 0 {
		return end(height + 1)
	}
	return nil
}

// made returns an error if a block that was made is without one of these inputs, as far as its record was kept.
func (n *Node) made(ctx context.Context, height int64, inputs []*Input) error {
	b, err := ReadBlock(ctx, &n.store.Reader, height)
	if errors.Is(err, ErrNoBlock) {
		return nil
	} else if err != nil {
		return err
	}
	for _, in := range inputs {
		if !slices.ContainsFunc(b.Inputs, func(o Outcome) bool { return o.Sender == in.Sender && o.Seq == in.Seq && o.Type == in.Type }) {
			return fmt.Errorf("%s %d of %s is for block %d, which was made without it: the chain is at block %d, and a file tells of a chain's blocks from the first; "+
				`put {"type":"block","height":%d} before what is new`, in.Type, in.Seq, in.Sender, height, n.height, n.height)
		}
	}
	return nil
}

// ReadInput is ParseInput for a line that a person has written: where it has {"file":"PATH"} for a bundle, the file is read, from dir if
// its path is not absolute.
func ReadInput(line []byte, dir string) (*Input, error) {
	in, err := ParseInput(line)
	if err != nil || in.Bundle == nil {
		return in, err
	}
	var named map[string]string
	if json.Unmarshal(in.Bundle, &named) != nil || len(named) != 1 || named["file"] == "" {
		return in, nil
	}
	path := named["file"]
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	bundle, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a bundle: %w", err)
	}
	if !json.Valid(bundle) {
		return nil, fmt.Errorf("reading a bundle: %s is not JSON; expected what @endo/bundle-source writes", path)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		return nil, err
	}
	fields["bundle"] = bundle
	if line, err = json.Marshal(fields); err != nil {
		return nil, err
	}
	return ParseInput(line)
}

// Drain makes empty blocks until another would do nothing, at most so many; none if there is nothing to do.
func (n *Node) Drain(ctx context.Context, most int, report func(*Block)) error {
	busy, err := n.busy(ctx)
	if err != nil {
		return err
	}
	for made := 0; busy && made < most; made++ {
		b, err := n.Make(ctx, nil)
		if err != nil {
			return err
		}
		if report != nil {
			report(b)
		}
		busy = b.Busy()
	}
	return nil
}

// busy reports whether the last block has left something to do.
func (n *Node) busy(ctx context.Context) (bool, error) {
	if n.height == 0 {
		return false, nil
	}
	last, err := ReadBlock(ctx, &n.store.Reader, n.height)
	if err != nil {
		return false, err
	}
	return last.Busy(), nil
}
