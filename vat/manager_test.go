package vat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/enginetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/xsnap"
)

// deadline is for whatever a test does with one worker.
const deadline = 3 * time.Minute

// worker returns the release worker of a version.
func worker(t testing.TB, version, platform string) xsnap.Options {
	t.Helper()
	r := enginetest.Recipe(t, version)
	return xsnap.Options{
		Version:   version,
		Path:      enginetest.Worker(t, version, platform, recipes.Release),
		Emulator:  enginetest.Emulator(t, platform),
		Protocol:  r.Engine.Protocol,
		MeterType: r.Engine.Meter,
	}
}

func fixture(t testing.TB) *swingstore.Store {
	t.Helper()
	s, err := swingstore.Open(swingsettest.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// replay drives a worker with what a vat of the real kernel was told and answered, and returns how many items that were, and the first
// difference.
func replay(ctx context.Context, s *swingstore.Store, id string, o xsnap.Options, restart bool) (items int, err error) {
	spans, err := s.Spans(ctx, id)
	if err != nil {
		return 0, err
	}
	var m *Manager
	var heap string // hash of the last snapshot
	defer func() {
		if m != nil {
			m.Kill()
		}
	}()
	for _, span := range spans {
		for item, err := range s.Items(ctx, span) {
			if err != nil {
				return items, err
			}
			items++
			var entry struct {
				D  []json.RawMessage
				SC []struct{ S, R json.RawMessage }
				R  struct {
					Status     string
					SnapshotID string
					Metering   struct{ Computrons int64 }
				}
			}
			if err := json.Unmarshal(item.Text, &entry); err != nil {
				return items, err
			}
			switch kind := text(entry.D[0]); kind {
			case "initialize-worker":
				var init struct {
					Source        struct{ BundleID string }
					WorkerOptions struct{ BundleIDs []string }
				}
				if err := json.Unmarshal(entry.D[1], &init); err != nil {
					return items, err
				}
				mo := ManagerOptions{Worker: o, ID: id}
				read := func(id string) ([]byte, error) { return s.Bundle(ctx, id) }
				ids := init.WorkerOptions.BundleIDs
				if err := mo.ReadBundles(read, ids[0], ids[1], init.Source.BundleID); err != nil {
					return items, err
				}
				if m, err = StartManager(ctx, mo); err != nil {
					return items, err
				}
			case "save-snapshot":
				hash := sha256.New()
				if err := m.Snapshot(ctx, hash, restart); err != nil {
					return items, err
				}
				if heap = hex.EncodeToString(hash.Sum(nil)); heap != entry.R.SnapshotID {
					return items, fmt.Errorf("item %d: heap snapshot %s, expected %s", item.Position, heap, entry.R.SnapshotID)
				}
			case "load-snapshot":
			case "shutdown-worker":
				if err := m.Close(); err != nil {
					return items, err
				}
			default:
				d, err := json.Marshal(entry.D)
				if err != nil {
					return items, err
				}
				made := 0
				outcome, err := m.Deliver(ctx, d, func(_ context.Context, syscall []byte) ([]byte, error) {
					if made == len(entry.SC) {
						return nil, fmt.Errorf("item %d: an extra syscall %s", item.Position, syscall)
					}
					if expected := entry.SC[made].S; !bytes.Equal(syscall, expected) {
						return nil, fmt.Errorf("item %d: syscall %s, expected %s", item.Position, syscall, expected)
					}
					made++
					return entry.SC[made-1].R, nil
				})
				if err != nil {
					return items, err
				}
				if made != len(entry.SC) || !outcome.OK || outcome.Meter.Compute != entry.R.Metering.Computrons {
					return items, fmt.Errorf("item %d: %d syscalls, %+v; expected %d, %+v", item.Position, made, outcome, len(entry.SC), entry.R)
				}
			}
		}
	}
	return items, nil
}

// A worker that is driven by the transcript of a real kernel's vat makes the same syscalls, uses the same computrons and has the same heap, to
// the last byte.
func TestRealTranscript(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		vat, platform string
		restart       bool
		items         int
	}{
		{"v4", "linux/amd64", true, 150},
		{"v5", "linux/amd64", false, 99}, // which was upgraded
		{"v6", "linux/arm64", true, 12},
	} {
		t.Run(test.vat+" "+test.platform, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			start := time.Now()
			n, err := replay(ctx, fixture(t), test.vat, worker(t, swingsettest.Version, test.platform), test.restart)
			if err != nil || n != test.items {
				t.Errorf("%d items of %d, %v", n, test.items, err)
			}
			t.Log(time.Since(start))
		})
	}
}

// A worker of another version is found to be another at its first heap snapshot or delivery.
func TestRealTranscriptOnAnotherVersion(t *testing.T) {
	t.Parallel()
	s := fixture(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	o := worker(t, swingsettest.Version, "linux/amd64")
	o.ParserBuffer = 4096 // which is part of heap snapshots
	if n, err := replay(ctx, s, "v6", o, true); err == nil || !strings.Contains(err.Error(), "item 4: heap snapshot") {
		t.Errorf("%d items, %v", n, err)
	}
}

func TestManagerErrors(t *testing.T) {
	t.Parallel()
	s := fixture(t)
	v, err := s.Vat(t.Context(), "v4")
	if err != nil {
		t.Fatal(err)
	}
	start := func(t *testing.T) *Manager {
		t.Helper()
		o := ManagerOptions{Worker: worker(t, swingsettest.Version, "linux/amd64"), ID: "v4", Name: "bob"}
		read := func(id string) ([]byte, error) { return s.Bundle(t.Context(), id) }
		ids := v.Options.WorkerOptions.BundleIDs
		if err := o.ReadBundles(read, ids[0], ids[1], v.BundleID); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		t.Cleanup(cancel)
		m, err := StartManager(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Kill)
		return m
	}
	startVat := []byte(`["startVat",{"body":"#{\"name\":\"x\"}","slots":[]}]`)
	no := errors.New("no")
	t.Run("handler", func(t *testing.T) {
		t.Parallel()
		m := start(t)
		if _, err := m.Deliver(t.Context(), startVat, func(context.Context, []byte) ([]byte, error) { return nil, no }); !errors.Is(err, no) {
			t.Errorf("%v", err)
		}
		if _, err := m.Deliver(t.Context(), startVat, nil); err == nil {
			t.Error("the worker lives on")
		}
	})
	t.Run("panic", func(t *testing.T) {
		t.Parallel()
		m := start(t)
		if _, err := m.Deliver(t.Context(), startVat, func(context.Context, []byte) ([]byte, error) { panic("ouch") }); err == nil || !strings.Contains(err.Error(), "panic: ouch") {
			t.Errorf("%v", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		t.Parallel()
		m := start(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		if _, err := m.Deliver(ctx, startVat, func(context.Context, []byte) ([]byte, error) { cancel(no); return []byte(`["ok",null]`), nil }); !errors.Is(err, no) {
			t.Errorf("%v", err)
		}
	})
	t.Run("delivery", func(t *testing.T) {
		t.Parallel()
		m := start(t)
		if _, err := m.Deliver(t.Context(), []byte(`["nonsense"]`), nil); err == nil || !strings.Contains(err.Error(), `answering a delivery: the supervisor of v4 says "[\"err\"`) {
			t.Errorf("%v", err)
		}
	})
	t.Run("snapshot", func(t *testing.T) {
		t.Parallel()
		m := start(t)
		if err := m.Snapshot(t.Context(), failing{no}, true); !errors.Is(err, no) {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Snapshot(ctx, new(bytes.Buffer), true); !errors.Is(err, context.Canceled) {
			t.Errorf("a new worker that cannot start: %v", err)
		}
	})
	t.Run("bundle", func(t *testing.T) {
		t.Parallel()
		if _, err := ParseScript([]byte(`{"moduleFormat":"other"}`)); err == nil || !strings.Contains(err.Error(), `moduleFormat "other"`) {
			t.Errorf("%v", err)
		}
	})
}

// What is the vat's fault is said in words of this package, and in ASCII: encoding/json changes its own, and Unicode grows.
func TestSupervisorErrorText(t *testing.T) {
	m := &Manager{o: ManagerOptions{ID: "v1"}}
	for message, want := range map[string]string{
		`{"é": 1}`: `the supervisor of v1 says "{\"\u00e9\": 1}": expected an array with something in it`,
		`[]`:       `the supervisor of v1 says "[]": expected an array with something in it`,
		`["🫩"`:     `the supervisor of v1 says "[\"\U0001fae9\"": byte 7 of 7 is not JSON: expected "," or "]"`,
	} {
		if _, err := m.handle(t.Context(), []byte(message)); err == nil || err.Error() != want {
			t.Errorf("%v, expected %s", err, want)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
