package golden

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/xsnap"
)

// description is the Vector of results about the engine description.
const description = "description"

// checkDescription compares what the recipe says of the engine with what the engine shows, and its source, if that is at hand.
func checkDescription(ctx context.Context, e Engine, r *recipes.Recipe) ([]Result, error) {
	version, err := xsnap.Version(ctx, e.Path, e.Emulator...)
	if err != nil {
		return nil, err
	}
	level, err := xsnap.ProbeProtocol(ctx, e.Path, e.Emulator...)
	if err != nil {
		return nil, err
	}
	w, err := start(ctx, e, r, nil)
	if err != nil {
		return nil, err
	}
	defer w.Kill()
	var heap bytes.Buffer
	if _, err := w.Snapshot(&heap); err != nil {
		return nil, err
	}
	header, err := readHeader(heap.Bytes())
	if err != nil {
		return nil, err
	}
	results := []Result{
		{Label: "version", Expected: fmt.Sprintf("xsnap %s (XS %s)", r.XsnapVersion, r.Engine.XSVersion), Found: version},
		{Label: "protocol level", Expected: strconv.Itoa(r.Engine.Protocol), Found: strconv.Itoa(level)},
		{Label: "snapshot version", Expected: r.Engine.SnapshotVersion, Found: header.version},
		{Label: "snapshot signature", Expected: r.Engine.SnapshotSignature, Found: header.signature},
		{Label: "own snapshot", Expected: "loads", Found: load(ctx, e, r, &heap)},
	}
	if e.Source != nil {
		found, err := HostCallbacks(e.Source)
		result := Result{Label: "host callbacks", Expected: strconv.Itoa(r.Engine.HostCallbacks), Found: strconv.Itoa(found)}
		if err != nil {
			result.Found = err.Error()
		}
		results = append(results, result)
	}
	for i := range results {
		results[i].Vector = description
		results[i].OK = results[i].Expected == results[i].Found
	}
	return results, nil
}

var (
	callbackCount = regexp.MustCompile(`(?m)^#define mxSnapshotCallbackCount (\d+)$`)
	callbackTable = regexp.MustCompile(`(?s)gxSnapshotCallbacks\[mxSnapshotCallbackCount\] = \{(.*?)\};`)
	callbackEntry = regexp.MustCompile(`^(\w+),?\s*(//.*)?$`)
)

// WorkerSource is where xsnap-native has the worker's own source.
const WorkerSource = "xsnap/sources/xsnap-worker.c"

// HostCallbacks counts the entries of the worker's table of host callbacks in its source, xsnap-worker.c: what snapshots refer to by index
// does not show from outside.
func HostCallbacks(source []byte) (int, error) {
	declared, table := callbackCount.FindSubmatch(source), callbackTable.FindSubmatch(source)
	if declared == nil || table == nil {
		return 0, errors.New("the source has no table gxSnapshotCallbacks of mxSnapshotCallbackCount entries")
	}
	n := 0
	for line := range strings.Lines(string(table[1])) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "//"):
		case callbackEntry.MatchString(line):
			n++
		default:
			return 0, fmt.Errorf("the source has %q in the table gxSnapshotCallbacks, expected the name of a function", line)
		}
	}
	if string(declared[1]) != strconv.Itoa(n) {
		return 0, fmt.Errorf("the source has %d entries in the table gxSnapshotCallbacks, and mxSnapshotCallbackCount is %s", n, declared[1])
	}
	return n, nil
}

// load says whether the engine loads a heap snapshot, and why not.
func load(ctx context.Context, e Engine, r *recipes.Recipe, heap io.Reader) string {
	w, err := start(ctx, e, r, heap)
	if err != nil {
		return err.Error()
	}
	defer w.Kill()
	if err := w.Ready(); err != nil {
		return err.Error()
	}
	return "loads"
}

// header is the beginning of a heap snapshot.
type header struct {
	version   string // major.minor.patch of XS
	signature string
}

// readHeader reads the VERS and SIGN atoms, which come first in the XS_M container (xsSnapshot.c): each atom is its size, 4 bytes
// big-endian and 8 more than its content, and its 4-byte type.
func readHeader(b []byte) (header, error) {
	next := func(kind string) ([]byte, error) {
		if len(b) < 8 || string(b[4:8]) != kind {
			return nil, fmt.Errorf("the heap snapshot has no %s atom where one must be", kind)
		}
		size := int(binary.BigEndian.Uint32(b))
		if size < 8 || size > len(b) {
			return nil, fmt.Errorf("the heap snapshot's %s atom has %d bytes, of which %d are there", kind, size, len(b))
		}
		content := b[8:size]
		b = b[size:]
		return content, nil
	}
	if len(b) < 8 || string(b[4:8]) != "XS_M" {
		return header{}, fmt.Errorf("this is no heap snapshot: it begins with %q", b[:min(len(b), 8)])
	}
	b = b[8:]
	vers, err := next("VERS")
	if err != nil {
		return header{}, err
	}
	if len(vers) != 4 {
		return header{}, fmt.Errorf("the heap snapshot's VERS atom has %d bytes of content, expected 4", len(vers))
	}
	sign, err := next("SIGN")
	if err != nil {
		return header{}, err
	}
	return header{
		version:   fmt.Sprintf("%d.%d.%d", vers[0], vers[1], vers[2]),
		signature: string(bytes.TrimRight(sign, "\x00")),
	}, nil
}
