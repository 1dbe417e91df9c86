package transcripts_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/nodetest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/replay/transcripts"
	"github.com/enginery/enginery/swingstore"
	_ "modernc.org/sqlite"
)

func open(t testing.TB, path string, archives ...string) transcripts.Source {
	t.Helper()
	s, err := transcripts.Open(t.Context(), path, archives...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func spans(t testing.TB, s transcripts.Source, vat string) []swingstore.Span {
	t.Helper()
	list, err := s.Spans(t.Context(), vat)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func items(t testing.TB, s transcripts.Source, span swingstore.Span) (texts []string) {
	t.Helper()
	for item, err := range s.Items(t.Context(), span) {
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(item.Text))
	}
	return texts
}

func compress(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	path = filepath.Join(t.TempDir(), "x.gz")
	if err := os.WriteFile(path, z.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a slog tells is what the store has, to the last byte, but for what starts a worker: a slog does not say what bundles that is from.
func TestSlog(t *testing.T) {
	t.Parallel()
	store := open(t, swingsettest.Store(t))
	plain := swingsettest.Slog(t)
	for _, path := range []string{plain, compress(t, plain)} {
		slog := open(t, path)
		if slog.Kind() != transcripts.KindSlog || slog.Path() != path {
			t.Fatalf("%s is a %s", slog.Path(), slog.Kind())
		}
		vats, err := store.Vats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		same := 0
		for _, v := range vats {
			want, got := spans(t, store, v.ID), spans(t, slog, v.ID)
			if len(want) != len(got) {
				t.Errorf("%s has %d spans, expected %d", v.ID, len(got), len(want))
				continue
			}
			for i := range want {
				if want[i].Hash == got[i].Hash && want[i].Incarnation == got[i].Incarnation {
					same++
					continue
				}
				w, g := items(t, store, want[i]), items(t, slog, got[i])
				if len(w) == len(g) && strings.HasPrefix(w[0], `{"d":["initialize-worker"`) {
					w[0], g[0] = "", ""
				}
				if fmt.Sprint(w) != fmt.Sprint(g) {
					t.Errorf("%s differs: %d items, expected %d", want[i], len(g), len(w))
				}
			}
		}
		if same < 20 {
			t.Errorf("%d spans have the hash that the store says", same)
		}
	}
}

// A slog that begins in the middle of a vat's life has what it has.
func TestSlogFromTheMiddle(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(swingsettest.Slog(t))
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.Index(b, []byte(`{"type":"heap-snapshot-save","vatID":"v4"`))
	path := filepath.Join(t.TempDir(), "slog")
	if err := os.WriteFile(path, b[cut:], 0o644); err != nil {
		t.Fatal(err)
	}
	slog, store := open(t, path), open(t, swingsettest.Store(t))
	want, got := spans(t, store, "v4"), spans(t, slog, "v4")
	if first := got[0]; first.Start != 0 || first.End != want[0].End-1 {
		t.Errorf("what came before is %s", first)
	}
	for _, err := range slog.Items(t.Context(), got[0]) {
		if !errors.Is(err, swingstore.ErrPruned) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("what came before: %v", err)
		}
	}
	if g, w := got[2], want[1]; g.Start != w.Start || g.Hash != w.Hash {
		t.Errorf("%s %s, expected %s %s", g, g.Hash, w, w.Hash)
	}
	// A slog of which a part is missing in the middle is none.
	hole := bytes.Index(b[cut:], []byte(`{"type":"deliver","crankNum"`)) + cut
	hole = bytes.Index(b[hole+1:], []byte(`"vatID":"v4"`)) + hole
	hole = bytes.LastIndexByte(b[:hole], '\n')
	end := bytes.Index(b[hole+1:], []byte(`{"type":"deliver-result"`)) + hole + 1
	if err := os.WriteFile(path, append(append([]byte{}, b[:hole+1]...), b[end:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := transcripts.Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "a part of the slog is missing") {
		t.Errorf("%v, %v", s, err)
	}
}

// Nothing that is missing in a slog is made up.
func TestSlogWithHoles(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(swingsettest.Slog(t))
	if err != nil {
		t.Fatal(err)
	}
	without := func(kind string) string { // the first line of a kind
		line := bytes.Index(b, []byte(`{"type":"`+kind+`",`))
		end := line + bytes.IndexByte(b[line:], '\n') + 1
		return string(b[:line]) + string(b[end:])
	}
	replaced := func(old, new string) string { return strings.Replace(string(b), old, new, 1) }
	for _, test := range []struct{ slog, want string }{
		{without("syscall"), "syscall 0 of item 1 of v1 is not there: a part of the slog is missing"},
		{without("syscall-result"), "the result of syscall 0 of item 1 of v1 is not there: a part of the slog is missing"},
		{replaced(`"vsc":`, `"x":`), "a syscall without vsc"},
		{replaced(`"vsr":`, `"x":`), "a syscall-result without vsr"},
		{replaced(`"vd":`, `"x":`), "a deliver without vd"},
		{replaced(`"dr":`, `"x":`), "a deliver-result without dr"},
	} {
		path := filepath.Join(t.TempDir(), "slog")
		if err := os.WriteFile(path, []byte(test.slog), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := transcripts.Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v; expected %s", err, test.want)
		}
	}
}

// A transcript file as misc-tools/extract-transcript-from-kerneldb.js writes it.
func TestTranscript(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := open(t, swingsettest.Store(t))
	vats, err := store.Vats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var v swingstore.Vat
	for _, v = range vats {
		if v.ID == "v4" {
			break
		}
	}
	var b bytes.Buffer
	first, err := json.Marshal(map[string]any{
		"type": "create-vat", "transcriptNum": 0, "vatID": "v4", "vatName": v.Name, "dynamic": false, "vatParameters": v.Parameters,
		"bundleIDs": v.Options.WorkerOptions.BundleIDs, "vatSourceBundleID": v.BundleID,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Write(append(first, '\n'))
	list := spans(t, store, "v4")
	n := 0
	for i, s := range list {
		for j, text := range items(t, store, s) {
			if i+j > 0 { // initialize-worker is not in it
				n++
				fmt.Fprintf(&b, `{"transcriptNum":%d,%s`+"\n", n, text[1:])
			}
		}
	}
	path := filepath.Join(t.TempDir(), "transcript-v4.sst")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, compress(t, path)} {
		s := open(t, path)
		if s.Kind() != transcripts.KindTranscript {
			t.Fatalf("it is a %s", s.Kind())
		}
		got := spans(t, s, "v4")
		for i, want := range list {
			if want.Hash != got[i].Hash {
				t.Errorf("%s %s, expected %s %s", got[i], got[i].Hash, want, want.Hash)
			}
		}
	}
	for what, change := range map[string][2]string{
		"something is missing": {`{"transcriptNum":7,`, `{"transcriptNum":8,`},
		"2 follows on 0":       {`{"transcriptNum":1,`, `{"transcriptNum":2,`},
		"extract the":          {`"sc":[]`, `"syscalls":[]`},
		"line 10":              {"{\"transcriptNum\":9,", "{"},
	} {
		if err := os.WriteFile(path, []byte(strings.Replace(b.String(), change[0], change[1], 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := transcripts.Open(ctx, path); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v, %v", what, s, err)
		}
	}
}

// exporter writes an export as agoric-sdk's packages/cosmic-swingset/src/export-kernel-db.js does, with the same exporter.
const exporter = `
import '@endo/init/debug.js';
import fs from 'node:fs';
import { makeSwingStoreExporter } from '@agoric/swing-store';
const [store, dir] = process.argv.slice(2);
const exporter = makeSwingStoreExporter(store, { artifactMode: 'debug' });
const data = fs.openSync(dir + '/export-data.jsonl', 'w');
for await (const entry of exporter.getExportData()) fs.writeSync(data, JSON.stringify(entry) + '\n');
const artifacts = [];
for await (const name of exporter.getArtifactNames()) {
  const file = 'artifact-' + artifacts.length;
  const out = fs.openSync(dir + '/' + file, 'w');
  for await (const chunk of exporter.getArtifact(name)) fs.writeSync(out, chunk);
  artifacts.push([name, file]);
}
fs.writeFileSync(dir + '/export-manifest.json', JSON.stringify({ blockHeight: 7, artifactMode: 'debug', data: 'export-data.jsonl', artifacts }));
await exporter.close();
`

func export(t testing.TB, store string) string {
	t.Helper()
	fixture, err := filepath.Abs("../../testdata/swingset")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(nodetest.Install(t, fixture, "better-sqlite3"), "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "export.mjs")
	if err := os.WriteFile(script, []byte(exporter), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.CommandContext(t.Context(), "node", script, filepath.Dir(store), out).CombinedOutput(); err != nil {
		t.Fatalf("exporting: %v\n%s", err, text)
	}
	return out
}

// archive writes all spans and heap snapshots of a store to a folder, as packages/swing-store/src/archiver.js does.
func archive(t testing.TB, store transcripts.Source) string {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	write := func(name string, content []byte) {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(content)
		w.Close()
		if err := os.WriteFile(filepath.Join(dir, name+".gz"), z.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vats, err := store.Vats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vats {
		for _, s := range spans(t, store, v.ID) {
			write(fmt.Sprintf("transcript.%s.%d.%d", v.ID, s.Start, s.End), []byte(strings.Join(items(t, store, s), "\n")+"\n"))
		}
		snapshots, err := store.Snapshots(ctx, v.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range snapshots {
			if r, err := store.OpenSnapshot(ctx, s); err == nil {
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				write(fmt.Sprintf("snapshot.%s.%d", v.ID, s.Position), b)
			}
		}
	}
	return dir
}

// read reads all of a source, and returns a digest of it.
func read(t testing.TB, s transcripts.Source) string {
	t.Helper()
	ctx := t.Context()
	h := sha256.New()
	vats, err := s.Vats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vats {
		fmt.Fprintln(h, v.ID, v.Name, v.Static, v.Terminated, v.BundleID, string(v.RawOptions), string(v.Parameters))
		for _, span := range spans(t, s, v.ID) {
			fmt.Fprintln(h, span, span.Hash, span.Current, span.Incarnation, items(t, s, span))
		}
		snapshots, err := s.Snapshots(ctx, v.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, snapshot := range snapshots {
			fmt.Fprintln(h, snapshot, snapshot.Hash, snapshot.InUse, snapshot.Present)
			if snapshot.Present {
				r, err := s.OpenSnapshot(ctx, snapshot)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(h, r); err != nil {
					t.Fatal(err)
				}
				r.Close()
			}
		}
		for p, err := range s.Keys(ctx, v.ID+".vs.") {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(h, p.Key, p.Value)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// withSnapshot gives the store something in place of a heap snapshot, since the fixture has none.
func withSnapshot(t testing.TB) string {
	t.Helper()
	path := swingsettest.Store(t)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	heap := bytes.Repeat([]byte("heap"), 10000)
	sum := sha256.Sum256(heap)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(heap)
	w.Close()
	if _, err := db.Exec("UPDATE snapshots SET compressedSnapshot = ?, hash = ?, uncompressedSize = ? WHERE vatID = 'v4' AND inUse = 1", z.Bytes(), hex.EncodeToString(sum[:]), len(heap)); err != nil {
		t.Fatal(err)
	}
	return path
}

// An export has what the store has that it was made of.
func TestExport(t *testing.T) {
	t.Parallel()
	db := withSnapshot(t)
	store := open(t, db)
	dir := export(t, db)
	e := open(t, dir)
	if e.Kind() != transcripts.KindExport {
		t.Fatalf("it is a %s", e.Kind())
	}
	if want, got := read(t, store), read(t, e); got != want {
		t.Errorf("it is not what was exported: %s, expected %s", got, want)
	}
	span := spans(t, store, "v4")[1]
	var manifest struct{ Artifacts [][2]string }
	text, err := os.ReadFile(filepath.Join(dir, "export-manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	path := ""
	for _, a := range manifest.Artifacts {
		if a[0] == fmt.Sprintf("transcript.v4.%d.%d", span.Start, span.End) {
			path = filepath.Join(dir, a[1])
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for want, content := range map[string][]byte{
		"expected hash":   bytes.Replace(whole, []byte("ok"), []byte("kk"), 1),
		"and then EOF":    whole[:len(whole)/2],
		"items, found mo": append(bytes.Clone(whole), "{}\n"...),
		"pruned":          nil,
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if content == nil {
			os.Remove(path)
		}
		var last error
		for _, err := range e.Items(context.Background(), span) {
			last = err
		}
		if last == nil || !strings.Contains(last.Error(), want) {
			t.Errorf("%v; expected %q", last, want)
		}
	}
}

// Data of an export that ends too early is noticed, also if it is cut at the end of a line.
func TestExportCutOff(t *testing.T) {
	t.Parallel()
	dir := export(t, swingsettest.Store(t))
	path := filepath.Join(dir, "export-data.jsonl")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
	for _, n := range []int{0, 1, len(lines) / 2, len(lines) - 12, len(lines) - 1, len(lines)} {
		if err := os.WriteFile(path, bytes.Join(lines[:n], nil), 0o644); err != nil {
			t.Fatal(err)
		}
		var damaged *swingstore.DamagedError
		_, err := transcripts.Open(t.Context(), dir)
		if n == len(lines) && err != nil || n < len(lines) && (!errors.As(err, &damaged) || !strings.Contains(err.Error(), "cut off")) {
			t.Errorf("%d of %d lines: %v", n, len(lines), err)
		}
	}
}

// What a node has moved to its archives is found there.
func TestArchives(t *testing.T) {
	t.Parallel()
	path := withSnapshot(t)
	store := open(t, path)
	want := read(t, store)
	archived := archive(t, store)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("DELETE FROM transcriptItems WHERE (vatID, incarnation) IN (SELECT vatID, incarnation FROM transcriptSpans WHERE isCurrent IS NULL); UPDATE snapshots SET compressedSnapshot = NULL"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if got := read(t, open(t, path, t.TempDir(), archived)); got != want {
		t.Errorf("it is not what was removed")
	}
	if _, err := transcripts.Open(t.Context(), path, "nowhere"); err == nil || !strings.Contains(err.Error(), "opening an archive") {
		t.Errorf("%v", err)
	}
}
