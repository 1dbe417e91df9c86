package kernel

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/vat"
)

// kv is the keys of a transaction. After an error it reads nothing and writes nothing, and err is that error.
type kv struct {
	ctx context.Context
	tx  *swingstore.Tx
	err error
}

// get returns the value of a key, and "" if there is none.
func (s *kv) get(key string) string {
	if s.err != nil {
		return ""
	}
	value, err := optional(s.tx.Get(s.ctx, key))
	s.err = err
	return value
}

func (s *kv) set(key, value string) {
	if s.err == nil {
		s.err = s.tx.Set(key, value)
	}
}

func (s *kv) delete(key string) {
	if s.err == nil {
		s.err = s.tx.Delete(key)
	}
}

// getJSON reads the value of a key into v, and reports whether there is one.
func (s *kv) getJSON(key string, v any) bool {
	text := s.get(key)
	if text == "" {
		return false
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		s.fail("reading key %q: %w", key, err)
	}
	return s.err == nil
}

func (s *kv) setJSON(key string, v any) {
	text, err := encode(v)
	if err != nil {
		s.fail("writing key %q: %w", key, err)
	}
	s.set(key, text)
}

func (s *kv) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("%s: %w", s.tx.Path(), fmt.Errorf(format, args...))
	}
}

// illegal is fail for what a vat must not do. It is said alike on all nodes.
func (s *kv) illegal(format string, args ...any) {
	if s.err == nil {
		s.err = &vat.IllegalSyscallError{Problem: fmt.Sprintf(format, args...)}
	}
}

// count returns the number that a key counts, which is first for the first time, and counts on.
func (s *kv) count(key string, first int64) int64 {
	n := first
	if text := s.get(key); text != "" {
		n = s.number(key, text)
	}
	s.set(key, strconv.FormatInt(n+1, 10))
	return n
}

func (s *kv) number(key, text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.fail("key %q is %q, expected a number", key, text)
	}
	return n
}

// push puts an item at the end of a queue: its key has the positions of the first item and after the last.
func (s *kv) push(queue string, item any) {
	var ends [2]int64
	if !s.getJSON(queue, &ends) {
		ends = [2]int64{1, 1} // as in SwingSet's run queue
	}
	s.setJSON(fmt.Sprintf("%s.%d", queue, ends[1]), item)
	ends[1]++
	s.setJSON(queue, ends)
}

// shift takes the first item of a queue, and reports whether there was one.
func (s *kv) shift(queue string, item any) bool {
	var ends [2]int64
	if !s.getJSON(queue, &ends) || ends[0] == ends[1] {
		return false
	}
	key := fmt.Sprintf("%s.%d", queue, ends[0])
	if !s.getJSON(key, item) {
		s.fail("key %q is missing from its queue", key)
		return false
	}
	s.delete(key)
	ends[0]++
	s.setJSON(queue, ends)
	return s.err == nil
}

// keysWith returns up to limit keys that begin with a prefix, sorted.
func (s *kv) keysWith(prefix string, limit int) (found []string) {
	for key := prefix; s.err == nil && len(found) < limit; {
		next, err := s.tx.NextKey(s.ctx, key)
		if s.err = err; err != nil || !strings.HasPrefix(next, prefix) {
			break
		}
		found = append(found, next)
		key = next
	}
	return found
}

// state is the kernel's tables in a transaction. Names of objects begin with ko, those of promises with kp; a vat's name of them is a vref.
//
//	ko.nextID, kp.nextID, vat.nextID, vN.o.nextID, vN.p.nextID    the next number
//	koN.owner            the vat that exports it; none if it was abandoned
//	koN.refCount         R,C: who reaches it, and who at least recognizes it
//	kpN.state            unresolved, fulfilled or rejected
//	kpN.refCount
//	kpN.decider          the vat that is to resolve it, or empty: it is in a queue
//	kpN.subscribers      the vats that want to know, joined by commas
//	kpN.data             CapData that it was resolved with (SwingSet has two keys for it)
//	kpN.queue            messages to it, while it is unresolved
//	kpN.result           under which key the outside wants to know; SwingSet has none
//	vN.c.KREF            "R VREF" or "_ VREF": the vat reaches it, or only recognizes it
//	vN.c.VREF            KREF
//	vN.terminated        why; SwingSet has none
//	acceptanceQueue      sends and notifies that were not looked at yet
//	runQueue             those of them that are next; a send to a promise that is not resolved is in the promise's queue instead
//	gcActions            what vats have to be told of, as "vN dropExport koN"
//	results              for the outside; SwingSet has none
//	vats.terminated      the vats that are to be cleaned up
type state struct {
	kv
	k *Kernel
}

func isPromise(ref string) bool { return strings.HasPrefix(ref, "kp") }

// isExport reports whether a vref was chosen by the vat.
func isExport(vref string) bool { return len(vref) > 1 && vref[1] == '+' }

func clistKey(vat, ref string) string { return vat + ".c." + ref }

func (s *state) isTerminated(vat string) bool { return s.get(vat+".terminated") != "" }

func (s *state) newPromise(decider string) string {
	p := fmt.Sprintf("kp%d", s.count("kp.nextID", 40))
	s.set(p+".state", "unresolved")
	s.set(p+".refCount", "0")
	s.set(p+".decider", decider)
	return p
}

// owner returns the vat that exports an object, and "" if it was abandoned or its vat terminated.
func (s *state) owner(object string) string {
	vat := s.get(object + ".owner")
	if vat != "" && s.isTerminated(vat) {
		return ""
	}
	return vat
}

// root returns a vat's root object.
func (s *state) root(vat string) string {
	object := s.get(clistKey(vat, rootVref))
	if object == "" {
		s.fail("%s has no root object: there is no such vat, or it was terminated", vat)
	}
	return object
}

// clist returns a vat's name for something, and whether it reaches it; "" if it has none.
func (s *state) clist(vat, ref string) (vref string, reaches bool) {
	flag, vref, _ := strings.Cut(s.get(clistKey(vat, ref)), " ")
	return vref, flag == "R"
}

// toKernel returns the kernel's name for a vref, of which it makes one if the vat has chosen the vref. The vat shows by using it that it reaches it.
func (s *state) toKernel(vat, vref string) string {
	ref := s.get(clistKey(vat, vref))
	if ref == "" {
		if !isExport(vref) {
			s.illegal("%s has no %s", vat, vref)
			return ""
		}
		switch vref[0] {
		case 'o':
			ref = fmt.Sprintf("ko%d", s.count("ko.nextID", 20))
			s.set(ref+".owner", vat)
			s.set(ref+".refCount", "0,0")
		case 'p':
			ref = s.newPromise(vat)
			s.addRef(ref)
		default:
			s.illegal("%s makes %q, expected o+… or p+…", vat, vref)
			return ""
		}
		s.set(clistKey(vat, vref), ref)
		s.set(clistKey(vat, ref), "R "+vref)
		return ref
	}
	if _, reaches := s.clist(vat, ref); !reaches {
		if !isExport(vref) {
			s.illegal("%s uses %s, which it has dropped", vat, vref)
			return ""
		}
		s.set(clistKey(vat, ref), "R "+vref)
	}
	return ref
}

// toVat returns a vat's name for something that it is told of.
func (s *state) toVat(vat, ref string) string {
	vref, reaches := s.clist(vat, ref)
	if vref == "" {
		if isPromise(ref) {
			vref = fmt.Sprintf("p-%d", s.count(vat+".p.nextID", 60))
			s.addRef(ref)
		} else {
			vref = fmt.Sprintf("o-%d", s.count(vat+".o.nextID", 50))
			s.countObject(ref, 1, 1)
		}
		s.set(clistKey(vat, vref), ref)
	} else if reaches {
		return vref
	} else if !isExport(vref) {
		s.countObject(ref, 1, 0)
	}
	s.set(clistKey(vat, ref), "R "+vref)
	return vref
}

// clearReachable says that a vat no longer reaches an object.
func (s *state) clearReachable(vat, object string) {
	vref, reaches := s.clist(vat, object)
	if !reaches {
		return
	}
	s.set(clistKey(vat, object), "_ "+vref)
	if !isExport(vref) {
		s.countObject(object, -1, 0)
	}
}

// forget removes something from a vat's c-list.
func (s *state) forget(vat, ref string) {
	vref, _ := s.clist(vat, ref)
	if vref == "" {
		return
	}
	if isPromise(ref) {
		s.removeRef(ref)
	} else {
		s.clearReachable(vat, ref)
		if !isExport(vref) {
			s.countObject(ref, 0, -1)
		}
	}
	s.delete(clistKey(vat, ref))
	s.delete(clistKey(vat, vref))
}

func (s *state) toKernels(vat string, vrefs []string) []string {
	refs := make([]string, len(vrefs))
	for i, vref := range vrefs {
		refs[i] = s.toKernel(vat, vref)
	}
	return refs
}

func (s *state) toVats(vat string, refs []string) []string {
	vrefs := make([]string, len(refs))
	for i, ref := range refs {
		vrefs[i] = s.toVat(vat, ref)
	}
	return vrefs
}

// send sends a message.
func (s *state) send(target string, msg *Message) {
	s.addRef(target)
	s.holdMessage(msg, s.addRef)
	s.push("acceptanceQueue", event{Type: "send", Target: target, Msg: msg})
}

// accept puts what has come to the end of the run queue, or of that of a promise.
func (s *state) accept() {
	for {
		var e event
		if !s.shift("acceptanceQueue", &e) {
			return
		}
		if e.Type == "send" && isPromise(e.Target) && s.get(e.Target+".state") == "unresolved" {
			s.removeRef(e.Target) // which is held by who can resolve it
			s.push(e.Target+".queue", e.Msg)
		} else {
			s.push("runQueue", e)
		}
	}
}

// holdMessage does something with all that a message refers to.
func (s *state) holdMessage(msg *Message, do func(ref string)) {
	if msg.Result != "" {
		do(msg.Result)
	}
	for _, ref := range msg.Methargs.Slots {
		do(ref)
	}
}

// notify tells a vat that a promise is resolved.
func (s *state) notify(vat, promise string) {
	s.addRef(promise)
	s.push("acceptanceQueue", event{Type: "notify", VatID: vat, Promise: promise})
}

// release lets go of what a delivery refers to.
func (s *state) release(d *Delivery) {
	switch d.Kind {
	case KindMessage:
		s.removeRef(d.Target)
		s.holdMessage(d.Msg, s.removeRef)
	case KindNotify:
		s.removeRef(d.Promise)
	}
}

// drop gives up a delivery to a vat that was terminated.
func (s *state) drop(d *Delivery) {
	if d.Kind == KindMessage && d.Msg.Result != "" {
		s.resolve("", d.Msg.Result, true, *terminatedError)
	}
	s.release(d)
}

// route takes a message out of the run queue to where it belongs: a vat, a promise's queue, or nowhere.
func (s *state) route(target string, msg *Message) *Delivery {
	d := &Delivery{Kind: KindMessage, Target: target, Msg: msg}
	if !isPromise(target) {
		if d.Vat = s.owner(target); d.Vat != "" {
			return d
		}
		s.drop(d)
		return nil
	}
	refuse := func(data CapData) *Delivery {
		if msg.Result != "" {
			s.resolve("", msg.Result, true, data)
		}
		s.release(d)
		return nil
	}
	if s.get(target+".state") == "rejected" {
		return refuse(s.data(target))
	}
	data := s.data(target)
	object := presence(data)
	if object == "" {
		var call []json.RawMessage
		method := "?"
		if json.Unmarshal([]byte(strings.TrimPrefix(msg.Methargs.Body, "#")), &call) == nil && len(call) > 0 && json.Unmarshal(call[0], &method) != nil {
			method = string(call[0])
		}
		return refuse(*makeError("data is not callable, has no method " + method)) // as SwingSet says it
	}
	if d.Vat = s.owner(object); d.Vat == "" {
		s.drop(d)
		return nil
	}
	s.addRef(object)
	s.removeRef(target)
	d.Target = object
	return d
}

// presence returns the object that data is, and "" if it is something else.
func presence(data CapData) string {
	if len(data.Slots) == 1 && !isPromise(data.Slots[0]) && (strings.HasPrefix(data.Body, `#"$0`) || strings.HasPrefix(data.Body, `{"@qclass":"slot"`)) {
		return data.Slots[0]
	}
	return ""
}

func (s *state) data(promise string) (data CapData) {
	s.getJSON(promise+".data", &data)
	return data
}

// resolve settles a promise. decider is the vat that does so, or "" for the kernel; it is not notified.
func (s *state) resolve(decider, promise string, rejected bool, data CapData) {
	if state := s.get(promise + ".state"); state != "unresolved" {
		s.illegal("%s is resolved again: it is %q", promise, state)
		return
	}
	if found := s.get(promise + ".decider"); found != decider && decider != "" {
		s.illegal("%s is resolved by %s, and %q is to decide it", promise, decider, found)
		return
	}
	state := "fulfilled"
	if rejected {
		state = "rejected"
	}
	s.set(promise+".state", state)
	for _, ref := range data.Slots {
		s.addRef(ref)
	}
	s.setJSON(promise+".data", data)
	s.delete(promise + ".decider")
	for _, vat := range s.subscribers(promise) {
		if vat != decider {
			s.notify(vat, promise)
		}
	}
	s.delete(promise + ".subscribers")
	for {
		var msg Message
		if !s.shift(promise+".queue", &msg) {
			break
		}
		s.send(promise, &msg)
		s.holdMessage(&msg, s.removeRef) // of the promise's queue
	}
	s.delete(promise + ".queue")
	if key := s.get(promise + ".result"); key != "" {
		s.push("results", Result{Key: key, Rejected: rejected, Data: data})
		s.delete(promise + ".result")
		s.removeRef(promise)
	}
}

func (s *state) subscribers(promise string) []string {
	text := s.get(promise + ".subscribers")
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func (s *state) subscribe(vat, promise string) {
	if s.get(promise+".state") != "unresolved" {
		s.notify(vat, promise)
		return
	}
	list := s.subscribers(promise)
	if slices.Contains(list, vat) {
		return
	}
	list = append(list, vat)
	slices.Sort(list)
	s.set(promise+".subscribers", strings.Join(list, ","))
}

// disconnect rejects the promises that a vat was to decide, and abandons those of its exports that do not outlive an incarnation.
func (s *state) disconnect(vat string, data CapData) {
	s.rejectDecided(vat, data)
	for _, key := range s.keysWith(clistKey(vat, "o+"), math.MaxInt) {
		vref := strings.TrimPrefix(key, clistKey(vat, ""))
		if vref != rootVref && !strings.HasPrefix(vref, "o+d") {
			s.abandon(vat, s.get(key))
		}
	}
}

func (s *state) rejectDecided(vat string, data CapData) {
	for _, key := range s.keysWith(clistKey(vat, "kp"), math.MaxInt) {
		promise := strings.TrimPrefix(key, clistKey(vat, ""))
		if s.get(promise+".decider") == vat && s.get(promise+".state") == "unresolved" {
			s.resolve(vat, promise, true, data)
		}
	}
}

// abandon takes an export from its vat; messages to it are refused from now on.
func (s *state) abandon(vat, object string) {
	s.forget(vat, object)
	s.delete(object + ".owner")
	s.k.free[object] = true
}

// terminate ends a vat. What it was to decide is rejected with a reason; the rest is left to cleanUp.
func (s *state) terminate(vat string, reason CapData) {
	if s.isTerminated(vat) {
		return
	}
	s.setJSON(vat+".terminated", reason)
	var list []string
	s.getJSON("vats.terminated", &list)
	s.setJSON("vats.terminated", append(list, vat))
	s.rejectDecided(vat, reason)
	s.removeRef(s.root(vat)) // of Install
}

// cleanUp removes up to limit keys of terminated vats.
func (s *state) cleanUp(limit int) (n int) {
	var list []string
	s.getJSON("vats.terminated", &list)
	for len(list) > 0 && n < limit && s.err == nil {
		vat := list[0]
		for _, key := range s.keysWith(clistKey(vat, ""), limit-n) {
			ref := strings.TrimPrefix(key, clistKey(vat, ""))
			if n++; !strings.HasPrefix(ref, "k") {
				if ref = s.get(key); ref == "" { // gone with its pair
					continue
				}
			}
			if s.get(ref+".owner") == vat {
				s.abandon(vat, ref)
			} else {
				s.forget(vat, ref)
			}
		}
		for _, key := range s.keysWith(vat+".vs.", limit-n) {
			s.delete(key)
			n++
		}
		if n < limit {
			list = list[1:]
			s.setJSON("vats.terminated", list)
		}
	}
	return n
}
