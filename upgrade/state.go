package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/engines"
	"github.com/enginery/enginery/swingstore"
)

// state is what is in a store. Its keys, after Prefix:
//
//	head, settings, channels, tally, rollout      JSON
//	vat.ID                                        Vat
//	on.VERSION/PLACE, state.STATE.PLACE           vats by the version that they hold, and by state
//	count.VERSION                                 how many hold it
//	queue.ID.NUMBER                               Delivery, in order
//	aside.ID.RANK.KIND.KEY                        Delivery, in the order that they are made in
//	waits.NUMBER, ready.NUMBER                    ID of a vat that has a request, or whose queue is emptied
//	plan.ROLLOUT.step.NUMBER                      Step
//	plan.ROLLOUT.vat.ID                           NUMBER of its step
//	stale.ROLLOUT                                 its plan is to be removed
//
// A NUMBER is in 16 hexadecimal digits, so that the order of keys is that of numbers. A PLACE is an ID with a letter for how many digits it ends with
// before them, so that the order is that in which people count: va9 and vb10 are v9 and v10.
type state struct {
	Store
	known *known
}

// known is what is read so often that it is kept. It is as the store has it.
type known struct {
	head     *head
	settings *Settings
	tally    *Tally
	rollout  *Rollout
	vats     map[string]Vat
}

// mostKnown is how many vats are kept.
const mostKnown = 10_000

func open(s Store) state { return state{s, &known{vats: make(map[string]Vat)}} }

// head is what changes with every event.
type head struct {
	Seq    int64 `json:"seq"` // of the last event
	Height int64 `json:"height"`
	Places int64 `json:"places"` // given in orders so far

	UpgradeCarry  int64 `json:"upgradeCarry"`
	DeliveryCarry int64 `json:"deliveryCarry"`
}

// Tally counts vats and what waits for them.
type Tally struct {
	Active     int64 `json:"active"`
	Upgrading  int64 `json:"upgrading"`
	Suspended  int64 `json:"suspended"`
	Terminated int64 `json:"terminated"`

	Paused  int64 `json:"paused"`  // of all that are not terminated
	Flushed int64 `json:"flushed"` // whose queues are emptied
	Queued  int64 `json:"queued"`  // deliveries
	Bytes   int64 `json:"bytes"`   // of them
	Aside   int64 `json:"aside"`   // deliveries
}

func (t *Tally) of(s State) *int64 {
	switch s {
	case Active:
		return &t.Active
	case Upgrading:
		return &t.Upgrading
	case Suspended:
		return &t.Suspended
	}
	return &t.Terminated
}

func keyOf(parts ...string) string { return strings.Join(parts, ".") }

func number(n int64) string {
	digits := strconv.FormatInt(n, 16)
	return "0000000000000000"[len(digits):] + digits
}

// placeOf returns the place of a vat in lists.
func placeOf(id string) string {
	stem := strings.TrimRight(id, "0123456789")
	if n := len(id) - len(stem); n > 0 && n <= 26 {
		return stem + string(rune('a'+n-1)) + id[len(stem):]
	}
	return id
}

// vatAt returns the vat of a place.
func vatAt(place string) string {
	stem := strings.TrimRight(place, "0123456789")
	if n := len(place) - len(stem); n > 0 && n <= 26 {
		return stem[:len(stem)-1] + place[len(stem):]
	}
	return place
}

func (s state) set(key, value string) error { return s.Set(Prefix+key, value) }

func (s state) delete(key string) error { return s.Delete(Prefix + key) }

// text returns a value, or "" if there is none.
func (s state) text(ctx context.Context, key string) (string, error) {
	v, err := s.Get(ctx, Prefix+key)
	if errors.Is(err, swingstore.ErrNotFound) {
		return "", nil
	}
	return v, err
}

// read reads a value, and reports whether there is one.
func (s state) read(ctx context.Context, key string, dst any) (bool, error) {
	v, err := s.text(ctx, key)
	if err != nil || v == "" {
		return false, err
	}
	if err := json.Unmarshal([]byte(v), dst); err != nil {
		return false, fmt.Errorf("the controller's %s: %w", key, err)
	}
	return true, nil
}

func (s state) put(key string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.set(key, string(text))
}

// after returns the next key that begins with a prefix, without the prefix, and "" if there is none.
func (s state) after(ctx context.Context, prefix, key string) (string, error) {
	next, err := s.NextKey(ctx, Prefix+prefix+key)
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(next, Prefix+prefix)
	if !ok {
		return "", nil
	}
	return rest, nil
}

// kept returns a value that is kept, or else reads and keeps it.
func kept[T any](ctx context.Context, s state, key string, keep **T) (v T, err error) {
	if *keep != nil {
		return **keep, nil
	}
	ok, err := s.read(ctx, key, &v)
	if err == nil && !ok {
		err = ErrNotInitialized
	}
	if err == nil {
		*keep = &v
	}
	return v, err
}

// keepPut writes a value that is kept.
func keepPut[T any](s state, key string, keep **T, v T) error {
	*keep = nil
	err := s.put(key, v)
	if err == nil {
		*keep = &v
	}
	return err
}

func (s state) head(ctx context.Context) (head, error) { return kept(ctx, s, "head", &s.known.head) }

func (s state) settings(ctx context.Context) (Settings, error) {
	return kept(ctx, s, "settings", &s.known.settings)
}

func (s state) tally(ctx context.Context) (Tally, error) {
	return kept(ctx, s, "tally", &s.known.tally)
}

func (s state) channels(ctx context.Context) (v engines.Channels, err error) {
	ok, err := s.read(ctx, "channels", &v)
	if err == nil && !ok {
		err = ErrNotInitialized
	}
	return v, err
}

// rollout returns the rollout under way or the last one, or nil.
func (s state) rollout(ctx context.Context) (*Rollout, error) {
	r, err := kept(ctx, s, "rollout", &s.known.rollout)
	if errors.Is(err, ErrNotInitialized) {
		return nil, nil
	}
	return &r, err
}

func (s state) putRollout(r *Rollout) error { return keepPut(s, "rollout", &s.known.rollout, *r) }

// changeRollout changes the rollout, and removes the steps of vats.
func (s state) changeRollout(ctx context.Context, f func(*Rollout), vats ...string) error {
	r, err := s.rollout(ctx)
	if err != nil {
		return err
	}
	if r == nil {
		return errors.New("there is no rollout")
	}
	for _, v := range vats {
		if err := s.removeStep(ctx, r, v); err != nil {
			return err
		}
	}
	f(r)
	return s.putRollout(r)
}

func (s state) addStep(r *Rollout, step *Step) error {
	plan := keyOf("plan", number(r.ID))
	if err := s.put(keyOf(plan, "step", number(r.Steps)), step); err != nil {
		return err
	}
	return s.set(keyOf(plan, "vat", step.Vat), number(r.Steps))
}

func (s state) removeStep(ctx context.Context, r *Rollout, vat string) error {
	plan := keyOf("plan", number(r.ID))
	n, err := s.text(ctx, keyOf(plan, "vat", vat))
	if err != nil {
		return err
	}
	if n == "" {
		return fmt.Errorf("rollout %d has no step of %s", r.ID, vat)
	}
	if err := s.delete(keyOf(plan, "vat", vat)); err != nil {
		return err
	}
	return s.delete(keyOf(plan, "step", n))
}

func (s state) planned(ctx context.Context, rollout int64, vat string) (bool, error) {
	n, err := s.text(ctx, keyOf("plan", number(rollout), "vat", vat))
	return n != "", err
}

// firstStep returns the next step of a rollout, or nil.
func (s state) firstStep(ctx context.Context, rollout int64) (*Step, error) {
	prefix := keyOf("plan", number(rollout), "step") + "."
	n, err := s.after(ctx, prefix, "")
	if err != nil || n == "" {
		return nil, err
	}
	step := new(Step)
	_, err = s.read(ctx, prefix+n, step)
	return step, err
}

// stale returns the ID of a rollout whose plan is to be removed, or 0.
func (s state) stale(ctx context.Context) (int64, error) {
	n, err := s.after(ctx, "stale.", "")
	if err != nil || n == "" {
		return 0, err
	}
	return strconv.ParseInt(n, 16, 64)
}

// sweep removes so many keys of a plan.
func (s state) sweep(ctx context.Context, rollout, count int64) error {
	prefix := keyOf("plan", number(rollout)) + "."
	for range count {
		k, err := s.after(ctx, prefix, "")
		if err != nil {
			return err
		}
		if k == "" {
			return s.delete(keyOf("stale", number(rollout)))
		}
		if err := s.delete(prefix + k); err != nil {
			return err
		}
	}
	return nil
}

// vat returns a vat, or nil.
func (s state) vat(ctx context.Context, id string) (*Vat, error) {
	v, ok := s.known.vats[id]
	if ok {
		return &v, nil
	}
	if ok, err := s.read(ctx, keyOf("vat", id), &v); err != nil || !ok {
		return nil, err
	}
	s.keepVat(&v)
	return &v, nil
}

func (s state) keepVat(v *Vat) {
	if len(s.known.vats) == mostKnown {
		clear(s.known.vats)
	}
	s.known.vats[v.ID] = *v
}

// putVat writes a vat that was changed by an event, and all that follows from how it is now.
func (s state) putVat(ctx context.Context, h *head, old, v *Vat, e *Event) error {
	if old == nil {
		old = &Vat{ID: v.ID}
	} else if err := checkTransition(Transitions, v.ID, old.State(), v.State(), e.Type); err != nil {
		return err
	}
	// Places in orders.
	for _, o := range []struct {
		name  string
		wants bool
		place *int64
	}{{"waits", v.Request != nil, &v.Waits}, {"ready", (v.takes() || v.Terminated) && v.Queued()+v.Aside > 0, &v.Ready}} {
		switch {
		case o.wants && *o.place == 0:
			h.Places++
			*o.place = h.Places
			if err := s.set(keyOf(o.name, number(*o.place)), v.ID); err != nil {
				return err
			}
		case !o.wants && *o.place != 0:
			if err := s.delete(keyOf(o.name, number(*o.place))); err != nil {
				return err
			}
			*o.place = 0
		}
	}
	// Lists.
	if a, b := old.holds(), v.holds(); a != b {
		for _, c := range []struct {
			version string
			by      int64
		}{{a, -1}, {b, 1}} {
			if err := s.hold(ctx, c.version, v.ID, c.by); err != nil {
				return err
			}
		}
	}
	fresh := old.Version == ""
	if a, b := old.State(), v.State(); a != b || fresh {
		if !fresh {
			if err := s.delete(keyOf("state", string(a), placeOf(v.ID))); err != nil {
				return err
			}
		}
		if err := s.set(keyOf("state", string(b), placeOf(v.ID)), "1"); err != nil {
			return err
		}
	}
	// Counts.
	was, err := s.tally(ctx)
	if err != nil {
		return err
	}
	t := was
	if !fresh {
		t.count(old, -1)
	}
	t.count(v, 1)
	if t != was {
		if err := keepPut(s, "tally", &s.known.tally, t); err != nil {
			return err
		}
	}
	delete(s.known.vats, v.ID)
	if err := s.put(keyOf("vat", v.ID), v); err != nil {
		return err
	}
	s.keepVat(v)
	return nil
}

func (t *Tally) count(v *Vat, by int64) {
	*t.of(v.State()) += by
	if v.Paused {
		t.Paused += by
	}
	if v.Ready != 0 {
		t.Flushed += by
	}
	t.Queued += by * v.Queued()
	t.Bytes += by * v.Bytes
	t.Aside += by * v.Aside
}

// holds returns the version that stays in service for the vat, or "".
func (v *Vat) holds() string {
	if v.Suspended || v.Terminated {
		return ""
	}
	return v.Version
}

func (s state) hold(ctx context.Context, version, vat string, by int64) error {
	if version == "" {
		return nil
	}
	n, err := s.count(ctx, version)
	if err != nil {
		return err
	}
	if n += by; n == 0 {
		err = s.delete("count." + version)
	} else {
		err = s.set("count."+version, strconv.FormatInt(n, 10))
	}
	if err != nil {
		return err
	}
	key := "on." + version + "/" + placeOf(vat)
	if by < 0 {
		return s.delete(key)
	}
	return s.set(key, "1")
}

// count returns how many vats hold a version.
func (s state) count(ctx context.Context, version string) (int64, error) {
	n, err := s.text(ctx, "count."+version)
	if err != nil || n == "" {
		return 0, err
	}
	return strconv.ParseInt(n, 10, 64)
}

// holder returns who holds a version.
func (s state) holder(ctx context.Context, version string) (Holder, error) {
	n, err := s.count(ctx, version)
	if err != nil {
		return Holder{}, err
	}
	h := Holder{Version: version, Count: n}
	h.Vats, err = s.listVats(ctx, "on."+version+"/", "", HolderVats)
	return h, err
}

// listVats returns at most so many vats of a list that come after one.
func (s state) listVats(ctx context.Context, prefix, after string, most int) ([]string, error) {
	ids, err := s.list(ctx, prefix, placeOf(after), most)
	for i, place := range ids {
		ids[i] = vatAt(place)
	}
	return ids, err
}

// list returns at most so many keys that begin with a prefix, without it, and come after one.
func (s state) list(ctx context.Context, prefix, after string, most int) (keys []string, err error) {
	for len(keys) < most {
		if after, err = s.after(ctx, prefix, after); err != nil || after == "" {
			return keys, err
		}
		keys = append(keys, after)
	}
	return keys, nil
}

// first returns the vat that is first in an order, or nil.
func (s state) first(ctx context.Context, order string) (*Vat, error) {
	n, err := s.after(ctx, order+".", "")
	if err != nil || n == "" {
		return nil, err
	}
	id, err := s.text(ctx, keyOf(order, n))
	if err != nil {
		return nil, err
	}
	v, err := s.vat(ctx, id)
	if err == nil && v == nil {
		err = &UnknownVatError{id}
	}
	return v, err
}

func (s state) firstRequest(ctx context.Context) (*Vat, error) { return s.first(ctx, "waits") }
func (s state) firstReady(ctx context.Context) (*Vat, error)   { return s.first(ctx, "ready") }

// asideRank is the order in which what was set aside is made.
func asideRank(k Kind) (string, error) {
	i := slices.Index([]Kind{ChangeVatOptions, DropExports, RetireExports, RetireImports, BringOutYourDead}, k)
	if i < 0 {
		return "", fmt.Errorf("deliveries of kind %q are not set aside", k)
	}
	return strconv.Itoa(i), nil
}

// push adds a delivery to a vat's queue.
func (s state) push(v *Vat, d *Delivery) error {
	if err := s.put(keyOf("queue", v.ID, number(v.Next)), d); err != nil {
		return err
	}
	v.Next++
	v.Bytes += d.size()
	return nil
}

// setAside adds a delivery to those that were set aside for a vat.
func (s state) setAside(ctx context.Context, v *Vat, d *Delivery) error {
	rank, err := asideRank(d.Kind)
	if err != nil {
		return err
	}
	key := keyOf("aside", v.ID, rank, string(d.Kind), d.Key)
	if was, err := s.text(ctx, key); err != nil {
		return err
	} else if was == "" {
		v.Aside++
	}
	return s.put(key, d)
}

// forget drops the bringOutYourDead of a vat whose incarnation has ended.
func (s state) forget(ctx context.Context, v *Vat) error {
	rank, err := asideRank(BringOutYourDead)
	if err != nil {
		return err
	}
	key := keyOf("aside", v.ID, rank, string(BringOutYourDead), "")
	if was, err := s.text(ctx, key); err != nil || was == "" {
		return err
	}
	v.Aside--
	return s.delete(key)
}

// next returns the key of what is delivered to a vat next.
func (s state) next(ctx context.Context, v *Vat) (string, error) {
	if v.Aside > 0 {
		prefix := keyOf("aside", v.ID) + "."
		k, err := s.after(ctx, prefix, "")
		if err == nil && k == "" {
			err = fmt.Errorf("%d deliveries were set aside for %s, and there are none", v.Aside, v.ID)
		}
		return prefix + k, err
	}
	return keyOf("queue", v.ID, number(v.First)), nil
}

// firstDelivery returns what is delivered to a vat next.
func (s state) firstDelivery(ctx context.Context, v *Vat) (*Delivery, error) {
	key, err := s.next(ctx, v)
	if err != nil {
		return nil, err
	}
	d := new(Delivery)
	if ok, err := s.read(ctx, key, d); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("nothing waits for %s, and it is to be delivered", v.ID)
	}
	return d, nil
}

// pop removes what is delivered to a vat next.
func (s state) pop(ctx context.Context, v *Vat) error {
	key, err := s.next(ctx, v)
	if err != nil {
		return err
	}
	if v.Aside > 0 {
		v.Aside--
		return s.delete(key)
	}
	d, err := s.firstDelivery(ctx, v)
	if err != nil {
		return err
	}
	if v.Bytes -= d.size(); v.First+1 == v.Next {
		v.First, v.Next = 0, 0
	} else {
		v.First++
	}
	return s.delete(key)
}
