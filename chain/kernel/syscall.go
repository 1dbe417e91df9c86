package kernel

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/enginery/enginery/vat"
)

// syscall answers a syscall of a vat, in its words. It is a *vat.IllegalSyscallError if the vat breaks the rules, as only a broken liveslots can: the vat
// is terminated, and not the chain.
func (s *state) syscall(id string, syscall []byte) (data []byte, err error) {
	illegal := func(format string, args ...any) error {
		return &vat.IllegalSyscallError{Problem: fmt.Sprintf(format, args...)}
	}
	var list []json.RawMessage
	if err := json.Unmarshal(syscall, &list); err != nil || len(list) == 0 {
		return nil, illegal("a syscall of %s is %s, expected an array", id, syscall)
	}
	var kind string
	if err := json.Unmarshal(list[0], &kind); err != nil {
		return nil, illegal("a syscall of %s is %s, expected its name first", id, syscall)
	}
	args := func(into ...any) error {
		if len(list)-1 < len(into) {
			return illegal("the syscall %s of %s has %d arguments, expected %d", kind, id, len(list)-1, len(into))
		}
		for i, v := range into {
			if err := json.Unmarshal(list[i+1], v); err != nil {
				return illegal("argument %d of the syscall %s of %s is %s, which is of another kind", i, kind, id, list[i+1])
			}
		}
		return nil
	}
	switch kind {
	case "send":
		var target string
		var msg Message
		if err := args(&target, &msg); err != nil {
			return nil, err
		}
		s.sendFrom(id, target, msg)
	case "callNow":
		return nil, &vat.CallError{Problem: "there are no devices"}
	case "subscribe":
		var promise string
		if err := args(&promise); err != nil {
			return nil, err
		}
		if promise = s.toKernel(id, promise); !isPromise(promise) {
			s.illegal("%s subscribes to %s, which is no promise", id, promise)
		}
		s.subscribe(id, promise)
	case "resolve":
		var list [][]json.RawMessage
		if err := args(&list); err != nil {
			return nil, err
		}
		return nil, s.resolveFrom(id, list)
	case "exit": // the crank's result says it
	case "dropImports", "retireImports", "retireExports", "abandonExports":
		var vrefs []string
		if err := args(&vrefs); err != nil {
			return nil, err
		}
		for _, vref := range vrefs {
			s.garbage(id, kind, vref)
		}
	default:
		return nil, illegal("%s makes a syscall %q, which there is not", id, kind)
	}
	return nil, nil
}

func (s *state) sendFrom(id, target string, msg Message) {
	to := s.toKernel(id, target)
	msg.Methargs.Slots = s.toKernels(id, msg.Methargs.Slots)
	if msg.Result != "" {
		msg.Result = s.toKernel(id, msg.Result)
		if decider := s.get(msg.Result + ".decider"); decider != id {
			s.illegal("%s sends a message with the result %s, which %q is to decide", id, msg.Result, decider)
		}
		s.set(msg.Result+".decider", "")
	}
	s.send(to, &msg)
}

func (s *state) resolveFrom(id string, list [][]json.RawMessage) error {
	type resolution struct {
		promise  string
		rejected bool
		data     CapData
	}
	var all []resolution
	for _, item := range list {
		var r resolution
		var vref string
		if len(item) != 3 {
			s.illegal("%s resolves %s, expected a promise, whether it is rejected, and data", id, item)
			return s.err
		}
		for i, v := range []any{&vref, &r.rejected, &r.data} {
			if err := json.Unmarshal(item[i], v); err != nil {
				s.illegal("%s resolves %s, of which item %d is of another kind", id, item, i)
				return s.err
			}
		}
		r.promise = s.toKernel(id, vref)
		r.data.Slots = s.toKernels(id, r.data.Slots)
		all = append(all, r)
	}
	for _, r := range all {
		s.resolve(id, r.promise, r.rejected, r.data)
	}
	for _, r := range all { // liveslots forgets a promise that it has resolved
		s.forget(id, r.promise)
	}
	return nil
}

// garbage is what a vat says of what it no longer needs.
func (s *state) garbage(id, kind, vref string) {
	object := s.get(clistKey(id, vref))
	if object == "" || vref == rootVref || isPromise(object) || isExport(vref) != (kind == "retireExports" || kind == "abandonExports") {
		s.illegal("%s makes the syscall %s for %s, which does not fit", id, kind, vref)
		return
	}
	_, reaches := s.clist(id, object)
	if reaches == (kind == "retireImports" || kind == "retireExports") && kind != "abandonExports" {
		s.illegal("%s makes the syscall %s for %s, which it reaches: %t", id, kind, vref, reaches)
		return
	}
	switch kind {
	case "dropImports":
		s.clearReachable(id, object)
	case "retireImports":
		s.forget(id, object)
	case "abandonExports", "retireExports":
		s.abandon(id, object)
	}
}

// translate returns a delivery in its vat's words, and nil if nothing of it is to be delivered any more.
func (s *state) translate(d *Delivery) []byte {
	var delivery []any
	switch d.Kind {
	case KindMessage:
		result := any(nil)
		target := s.toVat(d.Vat, d.Target)
		args := CapData{Body: d.Msg.Methargs.Body, Slots: s.toVats(d.Vat, d.Msg.Methargs.Slots)}
		if d.Msg.Result != "" {
			result = s.toVat(d.Vat, d.Msg.Result)
			s.set(d.Msg.Result+".decider", d.Vat)
		}
		delivery = []any{d.Kind, target, struct {
			Methargs CapData `json:"methargs"`
			Result   any     `json:"result"`
		}{args, result}}
	case KindNotify:
		if s.get(clistKey(d.Vat, d.Promise)) == "" {
			return nil
		}
		var list [][]any
		all := s.resolved(d.Promise, nil)
		for _, promise := range all {
			data := s.data(promise)
			vref := s.toVat(d.Vat, promise)
			list = append(list, []any{vref, s.get(promise+".state") == "rejected", CapData{Body: data.Body, Slots: s.toVats(d.Vat, data.Slots)}})
		}
		for _, promise := range all {
			s.forget(d.Vat, promise)
		}
		delivery = []any{d.Kind, list}
	default:
		var vrefs []string
		action := ""
		for _, kind := range gcActions {
			if kind.delivery == d.Kind {
				action = kind.action
			}
		}
		for _, object := range d.Objects {
			if !s.stillTrue(d.Vat, action, object) {
				continue
			}
			vref, _ := s.clist(d.Vat, object)
			vrefs = append(vrefs, vref)
			switch d.Kind {
			case KindDropExports:
				s.clearReachable(d.Vat, object)
			case KindRetireExports:
				s.forget(d.Vat, object)
				s.deleteObject(object)
			case KindRetireImports:
				s.forget(d.Vat, object)
			}
		}
		if len(vrefs) == 0 {
			return nil
		}
		delivery = []any{d.Kind, vrefs}
	}
	text, err := encode(delivery)
	if err != nil {
		s.fail("a delivery to %s: %w", d.Vat, err)
	}
	return []byte(text)
}

// resolved returns a promise and those that its resolution refers to, so far as they are resolved too: a vat is told of them at once
// (agoric-sdk, packages/SwingSet/src/kernel/cleanup.js, getKpidsToRetire).
func (s *state) resolved(promise string, seen []string) []string {
	seen = append(seen, promise)
	for _, ref := range s.data(promise).Slots {
		if isPromise(ref) && !slices.Contains(seen, ref) && s.get(ref+".state") != "unresolved" {
			seen = s.resolved(ref, seen)
		}
	}
	return seen
}
