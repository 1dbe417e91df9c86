package chain_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enginery/enginery/chain"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/internal/vattest"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/enginery/enginery/vat"
)

const (
	oldVersion = "agoric-upgrade-16"
	newVersion = "agoric-upgrade-18"
	deadline   = 8 * time.Minute
)

// soakEnv has the tests be long: 50 vats, hundreds of kills.
const soakEnv = "ENGINERY_CHAIN_SOAK"

// faults are the bundles to which upgrades fail, and what is said then.
var faults = []struct{ bundle, problem string }{
	{"peer-throws", "version 2 does not start"},
	{"peer-forgets", "defineDurableKind not called for tags: [Token]"},
	{"peer-spins", "Compute meter exceeded"},
	{"peer-recurses", "Stack meter exceeded"},
	{"peer-rootless", "buildRootObject"},
}

// script is what a chain is fed with, and what must come of it.
type script struct {
	bytes.Buffer
	t      testing.TB
	height int64
	seq    map[string]int
	good   string // ID of a bundle that works

	vats  []string
	bad   []string                       // vats whose upgrade fails at first
	heard map[string]map[string][]string // by vat and speaker: what is to be heard
	asked map[string]bool                // "sender seq" of messages whose result may be that a vat was upgraded
	sent  int
}

func (s *script) input(sender, kind string, fields map[string]any) int {
	s.seq[sender]++
	m := map[string]any{"sender": sender, "seq": s.seq[sender], "type": kind}
	maps.Copy(m, fields)
	line, err := json.Marshal(m)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Write(line)
	s.WriteByte('\n')
	return s.seq[sender]
}

func (s *script) block() {
	s.height++
	fmt.Fprintf(s, `{"type":"block","height":%d}`+"\n", s.height)
}

func (s *script) deliver(sender, vat, method string, args ...any) int {
	s.sent++
	if args == nil {
		args = []any{}
	}
	return s.input(sender, "deliver", map[string]any{"vat": vat, "method": method, "args": args})
}

// traffic is a block's messages from outside: some to vats, and some that have vats speak to others.
func (s *script) traffic(r *rand.Rand, messages int) {
	for range messages {
		sender := fmt.Sprintf("user%d", r.IntN(3))
		to := s.vats[r.IntN(len(s.vats))]
		what := fmt.Sprintf("%s %d", sender, s.seq[sender]+1)
		hear := func(vat, speaker string) {
			if s.heard[vat] == nil {
				s.heard[vat] = make(map[string][]string)
			}
			s.heard[vat][speaker] = append(s.heard[vat][speaker], what)
		}
		other := s.vats[r.IntN(len(s.vats))]
		kind := r.IntN(4)
		if other == to { // nobody knows himself
			kind = 0
		}
		switch kind {
		case 0, 1:
			s.deliver(sender, to, "hear", sender, what)
			hear(to, sender)
		case 2:
			s.deliver(sender, to, "tell", other, what)
			hear(other, to)
		case 3:
			seq := s.deliver(sender, to, "ask", other, what)
			s.asked[fmt.Sprint(sender, " ", seq)] = true
			hear(other, to)
		}
	}
}

// rollout is a chain's life: vats are installed on the old version, a new one is adopted, vats move to it while there is traffic all the time, five
// of them fail, are mended and go on. The first vat is the bootstrap vat, which stays on the old version.
func rollout(t testing.TB, vats, blocks, messages int) *script {
	s := &script{t: t, seq: make(map[string]int), heard: make(map[string]map[string][]string), asked: make(map[string]bool)}
	r := rand.New(rand.NewPCG(1, 2))
	bundles := make(map[string]json.RawMessage)
	names := []string{"peer-1", "peer-2"}
	for _, f := range faults[:min(len(faults), vats-1)] {
		names = append(names, f.bundle)
	}
	ids := make(map[string]string)
	for i, b := range swingsettest.Bundles(t, names...) {
		bundles[names[i]] = b
		var parsed struct{ EndoZipBase64Sha512 string }
		if err := json.Unmarshal(b, &parsed); err != nil {
			t.Fatal(err)
		}
		ids[names[i]] = "b1-" + parsed.EndoZipBase64Sha512
	}
	s.good = ids["peer-2"]
	s.input("gov", "init", map[string]any{"version": oldVersion, "snapshotInterval": 15})
	for _, name := range names {
		s.input("gov", "bundle", map[string]any{"bundle": bundles[name]})
	}
	s.block()
	for i := range vats {
		name := fmt.Sprintf("peer%d", i)
		if i == 0 {
			name = "bootstrap"
		}
		s.vats = append(s.vats, name)
		s.input("gov", "install", map[string]any{
			"vat": name, "bundle": ids["peer-1"], "parameters": map[string]any{"name": name}, "legacyOnly": i == 0, "metered": true,
		})
		if i%3 == 2 {
			s.block()
		}
	}
	s.block()
	for _, a := range s.vats {
		for _, b := range s.vats {
			if a != b {
				s.deliver("intro", a, "meet", map[string]any{"@vat": b}, b)
			}
		}
	}
	s.block()
	s.traffic(r, messages)
	s.block()
	s.input("gov", "adopt", map[string]any{"version": newVersion})
	var steps []upgrade.Step
	for i, vat := range s.vats[1:] {
		step := upgrade.Step{Vat: vat, Bundle: s.good}
		if i < len(faults) {
			step.Bundle = ids[faults[i].bundle]
			s.bad = append(s.bad, vat)
		}
		steps = append(steps, step)
	}
	s.input("gov", "rollout", map[string]any{"maxFailures": len(faults), "steps": steps})
	for i := range blocks {
		s.traffic(r, messages)
		s.block()
		if n := i - blocks/2; n >= 0 && n < len(s.bad) { // mended one after another
			s.input("gov", "upgrade", map[string]any{"vat": s.bad[n], "bundle": s.good})
		}
	}
	s.height += 9 // for what is left
	s.block()
	for _, vat := range s.vats {
		for _, speaker := range slices.Concat([]string{"user0", "user1", "user2"}, s.vats) {
			s.deliver("auditor", vat, "heard", speaker)
		}
		s.deliver("auditor", vat, "report")
	}
	s.height += 4
	s.block()
	return s
}

// ran is what a node has made of a script.
type ran struct {
	blocks  []*chain.Block
	results map[string]chain.Result // by "sender seq"
}

func (r *ran) add(t testing.TB, b *chain.Block) {
	r.blocks = append(r.blocks, b)
	for _, o := range b.Inputs {
		if o.Status != chain.Accepted {
			t.Errorf("block %d: %+v", b.Height, o)
		}
	}
	for _, result := range b.Results {
		key := fmt.Sprint(result.Sender, " ", result.Seq)
		if _, twice := r.results[key]; twice {
			t.Errorf("block %d: a second result for %s", b.Height, key)
		}
		r.results[key] = result
	}
}

// check compares what came of a script with what must.
func (s *script) check(r *ran) {
	t := s.t
	if int64(len(r.blocks)) != s.height {
		t.Fatalf("%d blocks, expected %d", len(r.blocks), s.height)
	}
	if len(r.results) != s.sent {
		t.Errorf("%d results of %d messages", len(r.results), s.sent)
	}
	seq := 0
	next := func() string {
		seq++
		result := r.results[fmt.Sprint("auditor ", seq)]
		if result.Rejected {
			t.Errorf("auditor %d: %s", seq, result.Data.Body)
		}
		return strings.TrimPrefix(result.Data.Body, "#")
	}
	for _, vat := range s.vats {
		for _, speaker := range slices.Concat([]string{"user0", "user1", "user2"}, s.vats) {
			var got []string
			if err := json.Unmarshal([]byte(next()), &got); err != nil {
				t.Fatal(err)
			}
			want := s.heard[vat][speaker]
			// What vats say comes in the order of each user's messages, which are not ordered among each other.
			for user := range 3 {
				of := func(all []string) (some []string) {
					for _, what := range all {
						if strings.HasPrefix(what, fmt.Sprintf("user%d ", user)) {
							some = append(some, what)
						}
					}
					return some
				}
				if g, w := of(got), of(want); !slices.Equal(g, w) {
					t.Errorf("%s has heard from %s %v, expected %v", vat, speaker, g, w)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s has heard from %s %d messages, expected %d", vat, speaker, len(got), len(want))
			}
		}
		want := fmt.Sprintf(`{"incarnation":2,"name":"%s","version":2}`, vat)
		if vat == "bootstrap" {
			want = `{"incarnation":1,"name":"bootstrap","version":1}`
		}
		if got := next(); got != want {
			t.Errorf("%s is %s, expected %s", vat, got, want)
		}
	}
	for key, result := range r.results {
		if result.Rejected && !(s.asked[key] && strings.Contains(result.Data.Body, `"name":"vatUpgraded"`)) {
			t.Errorf("%s is rejected: %s", key, result.Data.Body)
		}
	}
	// Three upgrades a block, five failures, as many successes as vats.
	upgraded, failed, most := make(map[string]int), 0, int64(0)
	for _, b := range r.blocks {
		most = max(most, b.Upgrades.Upgrades)
		for _, id := range b.Upgraded {
			upgraded[id]++
		}
		failed += len(b.Failed)
	}
	if len(upgraded) != len(s.vats)-1 || failed != len(s.bad) {
		t.Errorf("%d vats were upgraded and %d upgrades have failed, expected %d and %d", len(upgraded), failed, len(s.vats)-1, len(s.bad))
	}
	if want := min(3, int64(len(s.vats)-1)); most != want {
		t.Errorf("a block tries %d upgrades, expected %d", most, want)
	}
	last := r.blocks[len(r.blocks)-1]
	if last.Busy() || last.Tally.Active != int64(len(s.vats)) || last.Tally.Queued != 0 || last.Tally.Aside != 0 {
		t.Errorf("in the end: %+v", last)
	}
}

// open opens a node in a folder.
func open(t testing.TB, dir string, engines func(string) (*vat.Engine, error), o chain.Options) *chain.Node {
	t.Helper()
	o.Dir, o.Engines = dir, engines
	n, err := chain.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The whole life of a chain with real vats on real engines, on four nodes that are as unlike as nodes can be.
func TestRollout(t *testing.T) {
	t.Parallel()
	vats, blocks, messages := 7, 10, 4
	if os.Getenv(soakEnv) != "" {
		vats, blocks, messages = 51, 40, 25
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*deadline)
	defer cancel()
	s := rollout(t, vats, blocks, messages)
	engines := vattest.Engines(t, oldVersion, newVersion)

	start := time.Now()
	first := &ran{results: make(map[string]chain.Result)}
	n := open(t, t.TempDir(), engines, chain.Options{})
	if err := n.Feed(ctx, bytes.NewReader(s.Bytes()), "", func(b *chain.Block) { first.add(t, b) }); err != nil {
		t.Fatal(err)
	}
	s.check(first)
	checkEvents(t, n, s)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d vats, %d blocks, %d messages: %v", vats, s.height, s.sent, time.Since(start))

	var g sync.WaitGroup
	for name, o := range map[string]chain.Options{
		"two workers":              {Workers: 2, Jobs: 3},
		"restarted every 6 blocks": {Jobs: 2},
		"slow":                     {Workers: 4},
	} {
		g.Go(func() {
			start := time.Now()
			dir := t.TempDir()
			n := open(t, dir, engines, o)
			i := 0
			err := error(nil)
			for again := true; again; {
				again = false
				feed, stop := context.WithCancelCause(ctx)
				err = n.Feed(feed, bytes.NewReader(s.Bytes()), "", func(b *chain.Block) {
					want := first.blocks[i]
					if b.Height != want.Height || b.AppHash != want.AppHash {
						t.Errorf("%s: block %d has the app hash %s, expected %s of block %d", name, b.Height, b.AppHash, want.AppHash, want.Height)
						stop(fmt.Errorf("another hash"))
						return
					}
					i++
					switch {
					case strings.HasPrefix(name, "restarted") && i%6 == 0:
						again = true
						stop(fmt.Errorf("to be restarted"))
					case name == "slow":
						time.Sleep(20 * time.Millisecond)
					}
				})
				if again {
					n.Close()
					n = open(t, dir, engines, o)
				}
			}
			if err != nil && !t.Failed() {
				t.Errorf("%s: %v", name, err)
			}
			n.Close()
			t.Logf("%s: %v", name, time.Since(start))
		})
	}
	g.Wait()
}

// checkEvents checks that upgrades have failed for the reasons that they should have, and that all events make the controller's state.
func checkEvents(t testing.TB, n *chain.Node, s *script) {
	t.Helper()
	var problems []string
	var all []upgrade.Event
	for height := int64(1); height <= n.Height(); height++ {
		events, err := chain.Events(t.Context(), n.Store(), height)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, events...)
		for _, e := range events {
			if e.Type == upgrade.UpgradeFailed {
				problems = append(problems, e.Problem)
			}
		}
	}
	rebuilt := upgrade.NewMemory()
	err := upgrade.Rebuild(t.Context(), rebuilt, func(yield func(upgrade.Event, error) bool) {
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for key := upgrade.Prefix; ; {
		want, err := n.Store().NextKey(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(want, upgrade.Prefix) {
			want = ""
		}
		got, err := rebuilt.NextKey(t.Context(), key)
		if err != nil || got != want {
			t.Fatalf("after %q the events make %q, %v, and the store has %q", key, got, err, want)
		}
		if key = want; key == "" {
			break
		}
		a, _ := n.Store().Get(t.Context(), key)
		if b, _ := rebuilt.Get(t.Context(), key); a != b {
			t.Errorf("the events make %s %s, and the store has %s", key, b, a)
		}
	}
	for _, f := range faults[:len(s.bad)] {
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, f.problem) }) {
			t.Errorf("no upgrade has failed with %q: %q", f.problem, problems)
		}
	}
}

// A file is fed again from its beginning, also to a node that does not keep the records of all blocks.
func TestFeedAgain(t *testing.T) {
	t.Parallel()
	file := fmt.Sprintf(`{"sender":"gov","seq":1,"type":"init","version":%q}
{"type":"block","height":1}
{"sender":"gov","seq":2,"type":"settings","settings":{"onFailure":"roll-back"}}
{"type":"block","height":4}
`, oldVersion)
	for _, keep := range []int{0, 1} {
		n := open(t, t.TempDir(), func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{Keep: keep})
		defer n.Close()
		for range 2 {
			if err := n.Feed(t.Context(), strings.NewReader(file), "", nil); err != nil || n.Height() != 4 {
				t.Fatalf("keeping %d blocks: at %d, %v", keep, n.Height(), err)
			}
		}
		late := strings.Replace(file, `"seq":2`, `"seq":3`, 1)
		if err := n.Feed(t.Context(), strings.NewReader(late), "", nil); (err == nil) != (keep == 1) {
			t.Errorf("keeping %d blocks, what comes too late: %v", keep, err)
		}
	}
}

// A node that is stopped makes no further block, also of those that have nothing to do.
func TestStopped(t *testing.T) {
	t.Parallel()
	n := open(t, t.TempDir(), func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{})
	defer n.Close()
	enough := errors.New("enough")
	ctx, stop := context.WithCancelCause(t.Context())
	err := n.Feed(ctx, strings.NewReader(`{"type":"block","height":7}`), "", func(b *chain.Block) {
		if b.Height == 3 {
			stop(enough)
		}
	})
	if !errors.Is(err, enough) || n.Height() != 3 {
		t.Errorf("stopped after block 3: it is at %d, %v", n.Height(), err)
	}
}

// A node that is to keep fewer records than before removes all that are older.
func TestKeepFewer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct {
		keep               int
		to, first, records int64
	}{{0, 7, 1, 7}, {3, 8, 6, 3}, {1, 9, 9, 1}, {2, 12, 11, 2}} {
		n := open(t, dir, func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{Keep: test.keep})
		if err := n.Feed(t.Context(), strings.NewReader(fmt.Sprintf(`{"type":"block","height":%d}`, test.to)), "", nil); err != nil {
			t.Fatal(err)
		}
		first, last, err := chain.Kept(t.Context(), n.Store())
		if err != nil || first != test.first || last != test.to {
			t.Errorf("keeping %d: those from %d to %d, %v; expected from %d to %d", test.keep, first, last, err, test.first, test.to)
		}
		records := int64(0)
		for height := range test.to {
			if _, err := chain.ReadBlock(t.Context(), n.Store(), height+1); err == nil {
				records++
			}
		}
		if records != test.records {
			t.Errorf("keeping %d: %d records, expected %d", test.keep, records, test.records)
		}
		n.Close()
	}
}

// A version that no node can begin with is refused, and then the chain begins with another.
func TestInitRefused(t *testing.T) {
	t.Parallel()
	o := chain.Options{Check: func(_ context.Context, a upgrade.Adoption) error {
		if a.Version == newVersion {
			return &upgrade.RefusedError{Reason: "not this one"}
		}
		return nil
	}}
	n := open(t, t.TempDir(), func(string) (*vat.Engine, error) { return nil, nil }, o)
	defer n.Close()
	var inputs []*chain.Input
	for i, version := range []string{newVersion, oldVersion} {
		in, err := chain.ParseInput(fmt.Appendf(nil, `{"sender":"gov","seq":%d,"type":"init","version":%q}`, i+1, version))
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, in)
	}
	for i, want := range []chain.Status{chain.Refused, chain.Accepted} { // each in a block, as others may come between them
		b, err := n.Make(t.Context(), inputs[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		if b.Inputs[0].Status != want {
			t.Errorf("%+v, expected %s", b.Inputs[0], want)
		}
		events, err := chain.Events(t.Context(), n.Store(), b.Height)
		if err != nil {
			t.Fatal(err)
		}
		if (len(events) > 0) != (want == chain.Accepted) {
			t.Errorf("block %d, of an input that is %s, has the events %+v", b.Height, want, events)
		}
	}
}

// Whatever comes before there are versions is refused, and does not hold the chain.
func TestBeforeInit(t *testing.T) {
	t.Parallel()
	n := open(t, t.TempDir(), func(string) (*vat.Engine, error) { return nil, nil }, chain.Options{})
	defer n.Close()
	bundle := swingsettest.Bundles(t, "peer-1")[0]
	var inputs []*chain.Input
	for i, text := range []string{
		`"type":"settings","settings":{"onFailure":"roll-back"}`, `"type":"adopt","version":"agoric-upgrade-18"`, `"type":"retire","version":"agoric-upgrade-18"`,
		`"type":"install","vat":"mint","bundle":` + string(bundle), `"type":"deliver","vat":"mint","method":"report"`, `"type":"deliver","vat":"v1","method":"report"`,
		`"type":"rollout"`, `"type":"rollout","version":"agoric-upgrade-18","steps":[{"vat":"v1"}]`, `"type":"extend","steps":[]`, `"type":"upgrade","vat":"v1"`,
		`"type":"pause"`, `"type":"pause","vat":"v1"`, `"type":"resume"`, `"type":"resume","vat":"v1"`, `"type":"abort"`, `"type":"suspend","vat":"v1"`,
		`"type":"rollback","vat":"v1"`, `"type":"terminate","vat":"v1"`,
	} {
		in, err := chain.ParseInput(fmt.Appendf(nil, `{"sender":"gov","seq":%d,%s}`, i+1, text))
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, in)
	}
	b, err := n.Make(t.Context(), inputs)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range b.Inputs {
		if o.Status != chain.Refused {
			t.Errorf("%+v, expected it refused", o)
		}
	}
}

// The store of another kernel is no chain: nothing is changed in it.
func TestForeign(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, swingstore.FileName)
	if err := os.Rename(swingsettest.Store(t), path); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Open(chain.Options{Dir: dir}); !errors.Is(err, chain.ErrForeign) {
		t.Errorf("opened: %v", err)
	}
	s, err := swingstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := chain.Look(t.Context(), &s.Reader, chain.Most{}); !errors.Is(err, chain.ErrForeign) {
		t.Errorf("looked at: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("it has changed, %v", err)
	}
}
