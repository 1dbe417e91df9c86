package replay_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/vat"
	"golang.org/x/sys/unix"
)

// childEnv has the test program replay, and be killed.
const childEnv = "ENGINERY_REPLAY_CHILD"

type child struct {
	Store, Cache, Version, Worker string
	Protocol                      int
	All                           bool // vats, from bundles
	Limited                       bool // in memory, so that it may be this process's limit if a worker gets none
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		var c child
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			panic(err)
		}
		if c.Limited {
			const much = 16 << 30
			if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: much, Max: much}); err != nil {
				panic(err)
			}
		}
		s, err := transcripts.Open(context.Background(), c.Store)
		if err != nil {
			panic(err)
		}
		e := &vat.Engine{Version: c.Version}
		e.Worker.Path, e.Worker.Protocol = c.Worker, c.Protocol
		o := replay.Options{Vats: madeOf, Cache: c.Cache, Jobs: 2, Observe: func(e replay.Event) {
			if e.Kind == replay.Finished {
				fmt.Println(e.Vat, e.Start)
			}
		}}
		if c.All {
			o.Vats, o.Start = nil, replay.FromBundles
		}
		_, err = replay.Run(context.Background(), s, e, o)
		fmt.Println("end", err)
		status, _ := os.ReadFile("/proc/self/status") // Linux
		os.Stdout.Write(status)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func report(t testing.TB, r *replay.Report) string {
	t.Helper()
	b, err := json.Marshal(r.WithoutTimes())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The same input gives the same report: with any number of jobs, killed at any moment and started again, or known already.
func TestSameReport(t *testing.T) {
	t.Parallel()
	path := storeWithHeaps(t)
	s := open(t, path)
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	want := report(t, run(t, s, e, replay.Options{Vats: madeOf, Jobs: 1}))
	t.Run("jobs", func(t *testing.T) {
		t.Parallel()
		if got := report(t, run(t, s, e, replay.Options{Vats: madeOf, Jobs: 5})); got != want {
			t.Errorf("with 5 jobs:\n%s\nwith one:\n%s", got, want)
		}
	})
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		c := child{path, t.TempDir(), e.Version, e.Worker.Path, e.Worker.Protocol, false, false}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(5, 6))
		for i, after := range []int{0, 1, 4, 0, 0, 0, 0, 0} { // spans; and then at any moment
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(text))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for n := 0; n < after && lines.Scan(); n++ {
				if strings.HasPrefix(lines.Text(), "end") {
					t.Errorf("it ended before it was killed: %s", lines.Text())
				}
			}
			if i > 2 {
				time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
			}
			cmd.Process.Kill()
			cmd.Wait()
		}
		e := *e
		e.Lockdown, e.Supervisor = nil, nil // as the child has it: the store has its own
		cached, started := 0, 0
		o := replay.Options{Vats: madeOf, Cache: c.Cache, Observe: func(e replay.Event) {
			switch {
			case e.Kind == replay.Started:
				started++
			case e.Kind == replay.Finished && e.Cached:
				cached++
			}
		}}
		if got := report(t, run(t, s, &e, o)); got != want {
			t.Errorf("after it was killed:\n%s\nundisturbed:\n%s", got, want)
		}
		if cached == 0 {
			t.Error("nothing was known")
		}
		t.Logf("%d spans were known, %d were replayed", cached, started)
		started = 0
		if got := report(t, run(t, s, &e, o)); got != want || started > 0 {
			t.Errorf("%d spans were replayed again, and the report is\n%s\nexpected\n%s", started, got, want)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		stop := errors.New("stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		o := replay.Options{Vats: madeOf, Observe: func(e replay.Event) {
			if e.Kind == replay.Started {
				cancel(stop)
			}
		}}
		if r, err := replay.Run(ctx, s, e, o); !errors.Is(err, stop) || r != nil {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// What one worker does in one go is not lost either.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	s := open(t, swingsettest.Store(t))
	e := engine(t, swingsettest.Version, amd64, recipes.Release)
	o := replay.Options{Vats: []string{"v4"}, Start: replay.FromBundles}
	want := report(t, run(t, s, e, o))
	o.Cache = t.TempDir()
	stop := errors.New("stop")
	for after := range 3 { // spans that are done besides those that were done before
		ctx, cancel := context.WithCancelCause(t.Context())
		known, done := 0, 0
		o.Observe = func(e replay.Event) {
			switch {
			case e.Kind == replay.Finished && e.Cached:
				known++
			case e.Kind == replay.Finished:
				done++
			case e.Kind == replay.Started && done == 2:
				cancel(stop)
			}
		}
		if _, err := replay.RunWithCheckpoints(ctx, s, e, o); !errors.Is(err, stop) {
			t.Fatal(err)
		}
		if known != 2*after {
			t.Errorf("%d spans were known, expected %d", known, 2*after)
		}
		cancel(nil)
	}
	o.Observe = nil
	if got, err := replay.RunWithCheckpoints(t.Context(), s, e, o); err != nil || report(t, got) != want {
		t.Errorf("%v\n%s\nundisturbed:\n%s", err, report(t, got), want)
	}
	var left []string
	if err := filepath.WalkDir(o.Cache, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, o.Cache+"/"))
		}
		return err
	}); err != nil || len(left) != 3 || !strings.HasPrefix(left[0], "actions/") || !strings.HasPrefix(left[1], "blobs/") || !strings.HasPrefix(left[2], "blobs/") {
		t.Errorf("left are %q, %v; expected an action's result and its output", left, err)
	}
}

// What is no source, or is cut off, is an error, and there is no report.
func TestNoSource(t *testing.T) {
	t.Parallel()
	whole := readFile(t, swingsettest.Store(t))
	e := &vat.Engine{Version: "none"}
	e.Worker.Path = os.Args[0]
	for _, test := range []struct {
		name, file string
		content    []byte
		want       string
	}{
		{"empty", "x", nil, "not a swing-store"},
		{"garbage", "x", []byte(strings.Repeat("garbage ", 1000)), "not a swing-store"},
		{"a database of something else", "x", func() []byte {
			path := t.TempDir() + "/other.sqlite"
			db := newDatabase(t, path)
			if _, err := db.Exec("CREATE TABLE t (a)"); err != nil {
				t.Fatal(err)
			}
			db.Close()
			return readFile(t, path)
		}(), "not a swing-store: it has no table kvStore"},
		{"a database cut off", "x", whole[:len(whole)/2], "damaged or cut off"},
		{"half a page", "x", whole[:2000], "damaged or cut off"},
		{"JSON of something else", "x", []byte("{\"a\":1}\n{\"a\":2}\n"), "nor a slog or transcript"},
		{"half a line", "x", []byte(`{"type":"create-vat","vatID":"v1"`), "unexpected end of JSON input"},
		{"gzip cut off", "x", []byte("\x1f\x8b\x08\x00\x00\x00"), "EOF"},
		{"an export of nothing", "export-manifest.json", []byte(`{"artifacts":[]}`), "names no data"},
		{"an export that leads out", "export-manifest.json", []byte(`{"data":"../x","artifacts":[]}`), "outside"},
		{"an export without its data", "export-manifest.json", []byte(`{"data":"x","artifacts":[]}`), "no such file"},
		{"no JSON", "export-manifest.json", []byte("x"), "export-manifest.json: invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			if err := os.WriteFile(path+"/"+test.file, test.content, 0o644); err != nil {
				t.Fatal(err)
			}
			if test.file == "x" {
				path += "/x"
			}
			s, err := transcripts.Open(t.Context(), path)
			if err == nil {
				defer s.Close()
				_, err = replay.Run(t.Context(), s, e, replay.Options{})
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v; expected %q", err, test.want)
			}
		})
	}
}
