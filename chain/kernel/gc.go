package kernel

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// addRef counts who holds something: a c-list, a queue, a resolution, the outside.
func (s *state) addRef(ref string) {
	if isPromise(ref) {
		s.countPromise(ref, 1)
	} else {
		s.countObject(ref, 1, 1)
	}
}

func (s *state) removeRef(ref string) {
	if isPromise(ref) {
		s.countPromise(ref, -1)
	} else {
		s.countObject(ref, -1, -1)
	}
}

func (s *state) countPromise(promise string, by int64) {
	key := promise + ".refCount"
	n := s.number(key, s.get(key)) + by
	if n < 0 {
		s.fail("%s is %d", key, n)
	}
	if s.set(key, strconv.FormatInt(n, 10)); n == 0 {
		s.k.free[promise] = true
	}
}

func (s *state) countObject(object string, reachable, recognizable int64) {
	r, c := s.counts(object)
	r, c = r+reachable, c+recognizable
	if r < 0 || c < r {
		s.fail("the counts of %s are %d,%d", object, r, c)
	}
	if s.set(object+".refCount", fmt.Sprintf("%d,%d", r, c)); r == 0 {
		s.k.free[object] = true
	}
}

// counts returns how many reach an object, and how many at least recognize it.
func (s *state) counts(object string) (reachable, recognizable int64) {
	key := object + ".refCount"
	r, c, _ := strings.Cut(s.get(key), ",")
	return s.number(key, r), s.number(key, c)
}

// collect deletes the promises that nobody holds any more, and notes what vats have to be told of objects that nobody reaches
// (agoric-sdk, packages/SwingSet/src/kernel/state/kernelKeeper.js, processRefcounts).
func (s *state) collect() {
	var actions []string
	for len(s.k.free) > 0 && s.err == nil {
		free := slices.Sorted(maps.Keys(s.k.free))
		clear(s.k.free)
		for _, ref := range free {
			if s.get(ref+".refCount") == "" { // it was undone, or deleted before
				continue
			}
			if isPromise(ref) {
				s.collectPromise(ref)
				continue
			}
			reachable, recognizable := s.counts(ref)
			if reachable > 0 {
				continue
			}
			switch owner := s.get(ref + ".owner"); {
			case owner == "" && recognizable == 0:
				s.deleteObject(ref)
			case owner == "": // it was retired or abandoned, and goes with the last who recognizes it
				for _, vat := range s.vats() {
					if s.get(clistKey(vat, ref)) != "" {
						actions = append(actions, vat+" retireImport "+ref)
					}
				}
			case !s.isTerminated(owner): // that of one which is not cleaned up yet stays so long
				if _, reaches := s.clist(owner, ref); reaches {
					actions = append(actions, owner+" dropExport "+ref)
				}
				if recognizable == 0 {
					actions = append(actions, owner+" retireExport "+ref)
				}
			}
		}
	}
	s.addActions(actions)
}

func (s *state) collectPromise(promise string) {
	if s.get(promise+".refCount") != "0" {
		return
	}
	for _, ref := range s.data(promise).Slots {
		s.removeRef(ref)
	}
	for {
		var msg Message // to a promise that nobody can resolve any more
		if !s.shift(promise+".queue", &msg) {
			break
		}
		s.holdMessage(&msg, s.removeRef)
	}
	for _, field := range []string{"state", "refCount", "decider", "subscribers", "data", "queue"} {
		s.delete(promise + "." + field)
	}
}

func (s *state) deleteObject(object string) {
	s.delete(object + ".owner")
	s.delete(object + ".refCount")
}

func (s *state) addActions(actions []string) {
	if len(actions) == 0 {
		return
	}
	var all []string
	s.getJSON("gcActions", &all)
	all = append(all, actions...)
	slices.Sort(all)
	s.setJSON("gcActions", slices.Compact(all))
}

// gcActions are the kinds of actions in the order that a vat is told of them, and the deliveries that tell it.
var gcActions = []struct{ action, delivery string }{
	{"dropExport", KindDropExports}, {"retireExport", KindRetireExports}, {"retireImport", KindRetireImports},
}

// nextGC returns a delivery of garbage, or nil. What has become untrue meanwhile is left out.
func (s *state) nextGC() *Delivery {
	var all []string
	if !s.getJSON("gcActions", &all) || len(all) == 0 {
		return nil
	}
	var d *Delivery
	for d == nil && len(all) > 0 && s.err == nil {
		vat, _, _ := strings.Cut(all[0], " ")
		for _, kind := range gcActions {
			prefix := vat + " " + kind.action + " "
			if !slices.ContainsFunc(all, func(a string) bool { return strings.HasPrefix(a, prefix) }) {
				continue
			}
			d = &Delivery{Vat: vat, Kind: kind.delivery}
			all = slices.DeleteFunc(all, func(a string) bool {
				object, is := strings.CutPrefix(a, prefix)
				if is && !s.isTerminated(vat) && s.stillTrue(vat, kind.action, object) {
					d.Objects = append(d.Objects, object)
				}
				return is
			})
			break
		}
		if d == nil {
			s.fail("key %q has %q, which is none", "gcActions", all[0])
		} else if len(d.Objects) == 0 {
			d = nil
		}
	}
	s.setJSON("gcActions", all)
	return d
}

// stillTrue reports whether a vat is still to be told of an object (gc-actions.js, shouldProcessAction).
func (s *state) stillTrue(vat, action, object string) bool {
	vref, reaches := s.clist(vat, object)
	if vref == "" {
		return false
	}
	if action == "retireImport" {
		return true
	}
	reachable, recognizable := s.counts(object)
	if action == "dropExport" {
		return reaches && reachable == 0
	}
	return reachable == 0 && recognizable == 0
}
