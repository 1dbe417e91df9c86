package kernel_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/internal/vattest"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

const version = "agoric-upgrade-16"

const deadline = 10 * time.Minute

// machine is a kernel with its vats.
type machine struct {
	t       testing.TB
	version string
	ctx     context.Context
	s       *swingstore.Store
	k       *kernel.Kernel
	vats    *vattest.Vats
	sent    int
}

// snapshotInterval is short, since vats are told to look for garbage before a heap snapshot.
const snapshotInterval = 20

func start(t *testing.T) *machine { return startOn(t, version) }

func startOn(t testing.TB, version string) *machine {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	s, err := swingstore.Memory()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m := &machine{t: t, version: version, ctx: ctx, s: s, vats: &vattest.Vats{Options: vat.Options{
		Engines: vattest.Engines(t, version), SnapshotInterval: snapshotInterval,
	}}}
	m.k = kernel.New(func(id string) *vat.Vat { return m.vats.Get(t, id) })
	m.vats.Options.Host = m.k
	return m
}

func (m *machine) update(f func(tx *swingstore.Tx) error) {
	m.t.Helper()
	if err := m.s.Update(f); err != nil {
		m.t.Fatal(err)
	}
}

// install makes a vat and expects that it starts.
func (m *machine) install(name, bundle string, parameters any) (id string) {
	m.t.Helper()
	body, err := kernel.Encode(parameters)
	if err != nil {
		m.t.Fatal(err)
	}
	data, err := json.Marshal(kernel.CapData{Body: body, Slots: []string{}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.update(func(tx *swingstore.Tx) error {
		b, err := tx.AddBundle(swingsettest.Bundles(m.t, bundle)[0])
		if err != nil {
			return err
		}
		var r *vat.Result
		id, r, err = m.k.Install(m.ctx, tx, vat.Incarnation{Name: name, Engine: m.version, BundleID: b, Parameters: data})
		if err == nil && !r.Kept {
			err = errors.New(r.Problem)
		}
		return err
	})
	return id
}

// send sends a message. Arguments that are a ref stand for the root of a vat.
func (m *machine) send(to, method string, args ...any) (key string) {
	m.t.Helper()
	data := kernel.CapData{Slots: []string{}}
	var text []string
	for _, arg := range append([]any{method}, args...) {
		if r, ok := arg.(ref); ok {
			text = append(text, fmt.Sprintf(`"$%d.Alleged: root"`, len(data.Slots)))
			data.Slots = append(data.Slots, string(r))
			continue
		}
		body, err := kernel.Encode(arg)
		if err != nil {
			m.t.Fatal(err)
		}
		text = append(text, strings.TrimPrefix(body, "#"))
	}
	data.Body = "#[" + text[0] + ",[" + strings.Join(text[1:], ",") + "]]"
	m.sent++
	key = strconv.Itoa(m.sent)
	m.update(func(tx *swingstore.Tx) error { return m.k.Send(m.ctx, tx, to, data, key) })
	return key
}

type ref string

// run makes all deliveries, and returns the results by key. Then what the kernel counts is counted anew.
func (m *machine) run() map[string]string {
	m.t.Helper()
	results := m.deliverAll()
	m.audit()
	return results
}

// deliverAll makes all deliveries, and returns the results by key.
func (m *machine) deliverAll() map[string]string {
	m.t.Helper()
	results := make(map[string]string)
	for more := true; more; {
		m.update(func(tx *swingstore.Tx) error {
			var d *kernel.Delivery
			var err error
			if d, more, err = m.k.Next(m.ctx, tx); err != nil || d == nil {
				return err
			}
			r, err := m.k.Deliver(m.ctx, tx, d)
			if err != nil {
				return err
			}
			if r != nil && !r.Kept {
				m.t.Logf("%s: %s", d.Vat, r.Problem)
			}
			all, err := m.k.Results(m.ctx, tx)
			for _, r := range all {
				results[r.Key] = r.Data.Body
				if r.Rejected {
					results[r.Key] = "rejected: " + r.Data.Body
				}
			}
			return err
		})
	}
	return results
}

// call sends a message, makes all deliveries and checks the result.
func (m *machine) call(want, to, method string, args ...any) {
	m.t.Helper()
	key := m.send(to, method, args...)
	if got := m.run()[key]; got != want {
		m.t.Errorf("%s of %s gives %s, expected %s", method, to, got, want)
	}
}

// dump returns the keys of the kernel.
func (m *machine) dump() map[string]string {
	m.t.Helper()
	all := make(map[string]string)
	for key := ""; ; {
		next, err := m.s.NextKey(m.ctx, key)
		if err != nil {
			m.t.Fatal(err)
		}
		if key = next; key == "" {
			return all
		}
		if all[key], err = m.s.Get(m.ctx, key); err != nil {
			m.t.Fatal(err)
		}
	}
}

// audit counts anew who holds what, and compares with what the kernel has counted.
func (m *machine) audit() {
	m.t.Helper()
	all := m.dump()
	reachable, recognizable := make(map[string]int), make(map[string]int)
	hold := func(refs ...string) {
		for _, r := range refs {
			if r != "" {
				reachable[r]++
				recognizable[r]++
			}
		}
	}
	type item struct {
		Target  string
		Promise string `json:"kpid"`
		Msg     *kernel.Message
		kernel.Message
	}
	for key, value := range all {
		parts := strings.Split(key, ".")
		switch {
		case len(parts) == 3 && parts[1] == "c" && strings.HasPrefix(parts[2], "k"):
			flag, vref, _ := strings.Cut(value, " ")
			if all[parts[0]+".c."+vref] != parts[2] {
				m.t.Errorf("%s is %q, and its pair is %q", key, value, all[parts[0]+".c."+vref])
			}
			switch {
			case strings.HasPrefix(parts[2], "kp"):
				hold(parts[2])
			case vref[1] == '-':
				recognizable[parts[2]]++
				if flag == "R" {
					reachable[parts[2]]++
				}
			case vref == "o+0" && all[parts[0]+".terminated"] == "":
				hold(parts[2])
			}
		case len(parts) == 2 && parts[1] == "data":
			var data kernel.CapData
			if err := json.Unmarshal([]byte(value), &data); err != nil {
				m.t.Fatal(err)
			}
			hold(data.Slots...)
		case len(parts) == 2 && parts[1] == "result":
			hold(parts[0])
		case (parts[0] == "runQueue" || parts[0] == "acceptanceQueue") && len(parts) == 2, len(parts) == 3 && parts[1] == "queue":
			var i item
			if err := json.Unmarshal([]byte(value), &i); err != nil {
				m.t.Fatal(err)
			}
			if i.Msg == nil {
				i.Msg = &i.Message
			}
			hold(i.Target, i.Promise, i.Msg.Result)
			hold(i.Msg.Methargs.Slots...)
		}
	}
	for key, value := range all {
		r, is := strings.CutSuffix(key, ".refCount")
		if !is {
			if _, is := strings.CutSuffix(key, ".owner"); is && all[strings.TrimSuffix(key, "owner")+"refCount"] == "" {
				m.t.Errorf("%s has no counts", key)
			}
			continue
		}
		want := fmt.Sprintf("%d,%d", reachable[r], recognizable[r])
		if strings.HasPrefix(r, "kp") {
			want = strconv.Itoa(reachable[r])
		}
		if value != want {
			m.t.Errorf("%s is %s, counted anew it is %s", key, value, want)
		}
		delete(reachable, r)
	}
	for r, n := range reachable {
		if n > 0 {
			m.t.Errorf("%s is held %d times, and is not there", r, n)
		}
	}
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// Messages, promises, pipelining, objects and garbage between real vats.
func TestVats(t *testing.T) {
	t.Parallel()
	m := start(t)
	swingsettest.Bundles(t, "peer-1", "ledger-1")
	alice := m.install("alice", "peer-1", map[string]any{"name": "alice"})
	bob := m.install("bob", "peer-1", map[string]any{"name": "bob"})
	ledger := m.install("ledger", "ledger-1", map[string]any{"currency": "IST"})
	if alice != "v1" || bob != "v2" || ledger != "v3" {
		t.Fatal(alice, bob, ledger)
	}
	m.call(`#"one"`, alice, "hear", "x", "one")
	m.call(`#"!!two"`, alice, "hear", "x", "!two")
	m.call(`#["one","!!two"]`, alice, "heard", "x")
	m.call(`rejected: #{"#error":"not good","errorId":"error:liveSlots:v1#70001","name":"Error"}`, alice, "fail", "not good")
	m.call(`#{"incarnations":1,"owners":0,"vatParameters":{"currency":"IST"},"version":1}`, ledger, "report")
	// An object of alice's goes to bob, who calls it, holds it, and drops it.
	for i := range 30 {
		m.call(fmt.Sprintf(`#"thing %d"`, i), alice, "give", ref(bob), fmt.Sprintf("thing %d", i))
	}
	m.call(`#30`, bob, "release")
	for i := range 25 { // bringOutYourDead comes before heap snapshots
		m.send(bob, "hear", "y", i)
		m.send(alice, "hear", "y", i)
		m.run()
	}
	owned := 0
	for key, value := range m.dump() {
		if strings.HasSuffix(key, ".owner") && value == alice {
			owned++
		}
	}
	if owned != 1 {
		t.Errorf("30 things were dropped, and the kernel has %d objects of alice's", owned)
	}
	// Promises that stay open, and messages to what they will be.
	waiting := m.send(alice, "wait", ref(bob))
	relayed := m.send(alice, "relay", ref(bob), "hello")
	m.send(alice, "relay", ref(bob), "again")
	if got := m.run(); len(got) != 0 {
		t.Errorf("open promises are settled: %v", got)
	}
	settled := m.send(bob, "settle", 7)
	got := m.run()
	for key, want := range map[string]string{
		waiting: `#"alice has 7"`, settled: `#3`,
		relayed: `rejected: #{"#error":"data is not callable, has no method hear","errorId":"error:liveSlots:v1#70002","name":"Error"}`,
	} {
		if got[key] != want {
			t.Errorf("result %s is %s, expected %s", key, got[key], want)
		}
	}
	// Termination rejects what a vat was to decide, and what comes for it.
	waiting = m.send(alice, "wait", ref(bob))
	m.run()
	m.update(func(tx *swingstore.Tx) error { return m.k.Terminate(m.ctx, tx, bob, "no longer wanted") })
	if got := m.run(); len(got) != 1 || got[waiting] != `rejected: #{"#error":"no longer wanted","errorId":"error:liveSlots:v1#70004","name":"Error"}` {
		t.Errorf("after termination: %v", got)
	}
	before := len(m.dump())
	for n := 1; n > 0; {
		m.update(func(tx *swingstore.Tx) error {
			var err error
			n, err = m.k.CleanUp(m.ctx, tx, 2)
			return err
		})
		if n > 2 {
			t.Errorf("%d keys were removed at once, expected at most 2", n)
		}
		m.run()
	}
	for key := range m.dump() {
		if strings.HasPrefix(key, bob+".c.") || strings.HasPrefix(key, bob+".vs.") {
			t.Errorf("%s was not cleaned up", key)
		}
	}
	t.Log(before, "keys before cleaning up,", len(m.dump()), "after")
}

// recognized makes two vats, of which the first has an object that the second recognizes and does not hold.
func (m *machine) recognized() (alice, bob string) {
	m.t.Helper()
	alice = m.install("alice", "peer-1", map[string]any{"name": "alice"})
	bob = m.install("bob", "recognizer", nil)
	m.call(`#"it"`, alice, "give", ref(bob), "it")
	m.look(bob, "count")
	m.wantThings(alice, 1, bob, 1)
	return alice, bob
}

// look has a vat look for garbage: it does so before heap snapshots.
func (m *machine) look(id, method string) {
	m.t.Helper()
	for range snapshotInterval + 5 {
		m.send(id, method)
	}
	m.run()
}

// wantThings checks how many objects one vat has besides its root, and how many another recognizes.
func (m *machine) wantThings(owner string, owned int, importer string, recognized int) {
	m.t.Helper()
	o, r := 0, 0
	all := m.dump()
	for key, value := range all {
		if object, is := strings.CutSuffix(key, ".owner"); is && value == owner && object != all[owner+".c.o+0"] {
			o++
		}
		if strings.HasPrefix(key, importer+".c.ko") && strings.HasPrefix(value, "_ ") {
			r++
		}
	}
	if o != owned || r != recognized {
		m.t.Fatalf("%s has %d objects, and %s recognizes %d, expected %d and %d", owner, o, importer, r, owned, recognized)
	}
}

// An object is retired that only a terminated vat still recognizes, before what that vat leaves behind is removed.
func TestRetiredBeforeCleanUp(t *testing.T) {
	t.Parallel()
	m := start(t)
	alice, bob := m.recognized()
	m.update(func(tx *swingstore.Tx) error { return m.k.Terminate(m.ctx, tx, bob, "no longer wanted") })
	m.look(alice, "report")
	m.wantThings(alice, 0, bob, 1)
	m.update(func(tx *swingstore.Tx) error {
		_, err := m.k.CleanUp(m.ctx, tx, 1000)
		return err
	})
	m.audit()
}

// Who recognizes an object is told also if it goes with its vat.
func TestOrphaned(t *testing.T) {
	t.Parallel()
	m := start(t)
	alice, bob := m.recognized()
	m.update(func(tx *swingstore.Tx) error { return m.k.Terminate(m.ctx, tx, alice, "no longer wanted") })
	m.run()
	m.wantThings(alice, 1, bob, 1)
	m.update(func(tx *swingstore.Tx) error {
		_, err := m.k.CleanUp(m.ctx, tx, 1000)
		return err
	})
	m.run()
	m.wantThings(alice, 0, bob, 0)
	for key := range m.dump() {
		if object, is := strings.CutSuffix(key, ".refCount"); is && m.dump()[object+".owner"] == "" && !strings.HasPrefix(object, "kp") {
			t.Errorf("nobody has or recognizes %s, and it is still there", object)
		}
	}
}

// An upgrade ends what a vat had promised and what does not outlive its incarnation; one that fails ends nothing.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	m := start(t)
	bundles := swingsettest.Bundles(t, "peer-1", "peer-2", "peer-throws")
	alice := m.install("alice", "peer-1", map[string]any{"name": "alice"})
	bob := m.install("bob", "peer-1", map[string]any{"name": "bob"})
	upgrade := func(bundle []byte) (r *vat.Result) {
		t.Helper()
		m.update(func(tx *swingstore.Tx) error {
			id, err := tx.AddBundle(bundle)
			if err != nil {
				return err
			}
			v, err := tx.Vat(m.ctx, bob)
			if err != nil {
				return err
			}
			r, err = m.k.Upgrade(m.ctx, tx, bob, vat.Incarnation{Engine: version, BundleID: id, Parameters: v.Parameters}, "to 2", false)
			return err
		})
		m.audit()
		return r
	}
	owned := func() (n int) {
		for key, value := range m.dump() {
			if strings.HasSuffix(key, ".owner") && value == bob {
				n++
			}
		}
		return n
	}
	m.call(`#"it"`, bob, "give", ref(alice), "it") // an object that bob does not keep
	m.call(`#"$0.Alleged: Token"`, bob, "token", "x")
	waiting := m.send(alice, "wait", ref(bob))
	m.run()
	before := owned()
	if r := upgrade(bundles[2]); r.Kept || !strings.Contains(r.Problem, "version 2 does not start") {
		t.Errorf("%+v", r)
	}
	if got := m.run(); len(got) != 0 || owned() != before {
		t.Errorf("after an upgrade that has failed: %v, %d objects, expected %d", got, owned(), before)
	}
	m.call(`#{"incarnation":1,"name":"bob","version":1}`, bob, "report")
	if r := upgrade(bundles[1]); !r.Kept {
		t.Errorf("%+v", r)
	}
	if got := m.run(); len(got) != 1 || got[waiting] != `rejected: #{"incarnationNumber":0,"name":"vatUpgraded","upgradeMessage":"to 2"}` {
		t.Errorf("after the upgrade: %v", got)
	}
	if n := owned(); n != 1 {
		t.Errorf("after the upgrade bob has %d objects, expected its root", n)
	}
	m.call(`#{"incarnation":2,"name":"bob","version":2}`, bob, "report")
}

// A syscall that breaks the rules is the vat's fault, in the same words on every node, and changes nothing.
func TestIllegalSyscalls(t *testing.T) {
	m := start(t)
	id := m.install("alice", "peer-1", map[string]any{"name": "alice"})
	before := m.dump()
	for _, test := range []struct{ syscall, problem string }{
		{`["send","o-99",{"methargs":{"body":"#[]","slots":[]}}]`, "v1 has no o-99"},
		{`["send","o+0",{"methargs":{"body":"#[]","slots":["p-99"]}}]`, "v1 has no p-99"},
		{`["send","o+0",{"methargs":{"body":"#[]","slots":[]},"result":"o+0"}]`, "which \"\" is to decide"},
		{`["send","x+1",{"methargs":{"body":"#[]","slots":[]}}]`, "expected o+… or p+…"},
		{`["send","o+0"]`, "has 1 arguments, expected 2"},
		{`["send",7,{}]`, "argument 0 of the syscall send of v1 is 7"},
		{`["subscribe","o+0"]`, "is no promise"},
		{`["resolve",[["o+0",false,{"body":"#1","slots":[]}]]]`, "is resolved again"},
		{`["resolve",[["p+7",false]]]`, "expected a promise, whether it is rejected, and data"},
		{`["resolve",[["p+7",1,{}]]]`, "of which item 1 is of another kind"},
		{`["dropImports",["o-99"]]`, "which does not fit"},
		{`["retireExports",["o+0"]]`, "which does not fit"},
		{`["abandonExports",["o+0"]]`, "which does not fit"}, // nobody could send to the vat any more, nor terminate it
		{`["obey"]`, "which there is not"},
		{`{}`, "expected an array"},
		{`[1]`, "expected its name first"},
	} {
		err := m.s.Update(func(tx *swingstore.Tx) error {
			_, err := m.k.Syscall(m.ctx, tx, id, []byte(test.syscall))
			return err
		})
		var illegal *vat.IllegalSyscallError
		if !errors.As(err, &illegal) || !strings.Contains(illegal.Problem, test.problem) || strings.Contains(illegal.Problem, m.s.Path()) {
			t.Errorf("%s: %v; want %q", test.syscall, err, test.problem)
		}
	}
	if after := m.dump(); !maps.Equal(after, before) {
		t.Errorf("the kernel has %v, before it had %v", after, before)
	}
}
