package xsnap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ProbeProtocol finds out an engine's protocol level by what it does.
func ProbeProtocol(ctx context.Context, path string, emulator ...string) (level int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("probing the protocol of %s: %w", path, err)
		}
	}()
	if path, err = filepath.Abs(path); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "probe-") // lower levels take "@7" for a file name
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	answer := []byte("answer")
	start := func() (*Worker, error) {
		return Start(ctx, Options{Path: path, Emulator: emulator, Protocol: Level4, dir: dir,
			Handle: func(context.Context, []byte) ([]byte, error) { return answer, nil }})
	}

	// Level 2 takes the "/" off the host's answers.
	w, err := start()
	if err != nil {
		return 0, err
	}
	defer w.Kill()
	reply, err := w.Evaluate("({result: issueCommand(new ArrayBuffer(1))})")
	if err != nil {
		return 0, err
	}
	if bytes.Equal(reply.Payload, append([]byte{'/'}, answer...)) {
		return Level1, nil
	}
	if !bytes.Equal(reply.Payload, answer) {
		return 0, fmt.Errorf("the guest got %q where the host answered %q", reply.Payload, answer)
	}

	// Level 3 refuses unknown commands, lower ones end.
	_, err = w.round("sending an unknown command", 'X', nil)
	var exit *ExitError
	if !errors.As(err, &exit) {
		return 0, fmt.Errorf("an unknown command did not end the worker: %w", cmp.Or(err, errors.New("it answered")))
	}
	if exit.Signal != 0 {
		return 0, err
	}
	if exit.Code != ExitIO {
		return Level2, nil
	}

	// Level 4 says how large a heap snapshot is.
	w, err = start()
	if err != nil {
		return 0, err
	}
	defer w.Kill()
	_, err = w.Snapshot(io.Discard)
	var protocol *ProtocolError
	if errors.As(err, &protocol) {
		return Level3, nil
	}
	if err != nil {
		return 0, err
	}
	return Level4, nil
}
