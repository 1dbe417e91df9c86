package chain

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
)

// Keys of a chain, besides those of the kernel and the controller. Those that begin with "local." are not part of the state that is hashed.
//
//	chain.height                    of the last block
//	chain.settings                  settings
//	chain.sender.NAME.next          seq of the next input of a sender
//	chain.sender.NAME.result.SEQ    Result, until the sender has acknowledged it
//	local.appHash                   of the last block
//	local.block.HEIGHT              Block
//	local.inputs.HEIGHT             its inputs, lines of JSON
//	local.events.HEIGHT             the controller's events, lines of JSON
//
// A HEIGHT or SEQ is in 16 digits.
const (
	heightKey   = "chain.height"
	settingsKey = "chain.settings"
	appHashKey  = "local.appHash"
)

func digits(n int64) string { return fmt.Sprintf("%016d", n) }

func blockKey(height int64) string  { return "local.block." + digits(height) }
func inputsKey(height int64) string { return "local.inputs." + digits(height) }
func eventsKey(height int64) string { return "local.events." + digits(height) }

func nextKey(sender string) string { return "chain.sender." + sender + ".next" }

func resultKey(sender string, seq int64) string {
	return "chain.sender." + sender + ".result." + digits(seq)
}

// Status says what became of an input.
type Status string

// Statuses.
const (
	Accepted  Status = "accepted"
	Refused   Status = "refused"   // for a reason that all nodes see alike; nothing was changed but the sender's seq
	Duplicate Status = "duplicate" // it was in a block before
	Early     Status = "early"     // one with a lower seq has not come yet; it can be sent again after that
)

// Outcome is what became of an input.
type Outcome struct {
	Sender string `json:"sender"`
	Seq    int64  `json:"seq"`
	Type   string `json:"type"`
	Vat    string `json:"vat,omitempty"` // ID of the vat that it is about
	Status Status `json:"status"`
	Reason string `json:"reason,omitempty"`
}

// Result is what a message from outside was answered with.
type Result struct {
	Sender   string         `json:"sender"`
	Seq      int64          `json:"seq"`
	Height   int64          `json:"height"`
	Rejected bool           `json:"rejected,omitempty"`
	Data     kernel.CapData `json:"data"`
}

// Block is the record of a block.
type Block struct {
	Height  int64  `json:"height"`
	AppHash string `json:"appHash"` // after the block

	Inputs     []Outcome      `json:"inputs,omitempty"`
	Results    []Result       `json:"results,omitempty"`  // that have come in this block
	Cranks     int64          `json:"cranks"`             // besides the controller's
	Computrons int64          `json:"computrons"`         // of them, and of inputs
	Queue      int64          `json:"queue"`              // events in the run queue after the block
	Leavings   bool           `json:"leavings,omitempty"` // of terminated vats something is still to be removed
	Upgrades   *upgrade.Block `json:"upgrades"`
	Upgraded   []string       `json:"upgraded,omitempty"` // vats
	Failed     []string       `json:"failed,omitempty"`   // vats whose upgrade failed
	Tally      upgrade.Tally  `json:"tally"`              // after the block
	Rollout    string         `json:"rollout,omitempty"`  // "upgraded/failed/skipped of steps, state"
	Changes    int            `json:"changes"`            // keys that have changed
}

// Busy reports whether another block would do something even without inputs.
func (b *Block) Busy() bool {
	return b.Queue > 0 || b.Leavings || b.Tally.Flushed > 0 || b.Tally.Upgrading > 0 || strings.HasSuffix(b.Rollout, string(upgrade.Running)) || b.Upgrades.UpgradeCarry < 0
}

// Used returns the computrons of all that the block did: inputs, cranks, upgrades, and deliveries that had waited.
func (b *Block) Used() int64 { return b.Computrons + b.Upgrades.Computrons + b.Upgrades.Delivered }

// refusal is why an input is refused.
type refusal struct{ reason string }

func (e *refusal) Error() string { return e.reason }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// refused returns why an input is refused by all nodes alike, and false for an error that is of this node only.
func refused(err error) (reason string, ok bool) {
	var (
		own     *refusal
		other   *upgrade.RefusedError
		inUse   *upgrade.InUseError
		unknown *upgrade.UnknownVatError
	)
	if errors.As(err, &own) || errors.As(err, &other) || errors.As(err, &inUse) || errors.As(err, &unknown) {
		return err.Error(), true
	}
	return "", false
}

// Make makes the next block out of inputs, and commits it. After an error there is no such block: the state is that after the last one,
// and the same can be tried again, after what the error says is mended.
func (n *Node) Make(ctx context.Context, inputs []*Input) (*Block, error) {
	b, err := n.make(ctx, inputs)
	if err != nil {
		return nil, fmt.Errorf("block %d: %w", n.height+1, err)
	}
	return b, nil
}

// block is a block that is being made.
type block struct {
	*Block
	n      *Node
	tx     *swingstore.Tx
	c      *upgrade.Controller
	limits upgrade.Settings
}

func (n *Node) make(ctx context.Context, inputs []*Input) (*Block, error) {
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	n.warm(ctx, inputs)
	before := n.settings
	tx, err := n.store.Begin()
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		tx.Rollback()
		if !done {
			n.settings = before
		}
	}()
	b := &block{Block: &Block{Height: n.height + 1}, n: n, tx: tx}
	b.c = n.controller(tx)
	if err := b.inputs(ctx, inputs); err != nil {
		return nil, err
	}
	if b.limits, err = b.c.Settings(ctx); errors.Is(err, upgrade.ErrNotInitialized) {
		b.Upgrades = &upgrade.Block{}
	} else if err != nil {
		return nil, err
	} else if err := b.work(ctx); err != nil {
		return nil, err
	}
	if err := b.finish(ctx, inputs); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	done = true
	n.height, n.hash = b.Height, b.AppHash
	for _, e := range b.c.Events() {
		switch e.Type {
		case upgrade.VatSuspended, upgrade.VatTerminated:
			n.retire(e.Vat)
		case upgrade.UpgradeFailed:
			if e.Policy == upgrade.Suspend {
				n.retire(e.Vat)
			}
		}
	}
	return b.Block, nil
}

// controller returns the controller of the next block.
func (n *Node) controller(tx *swingstore.Tx) *upgrade.Controller {
	return upgrade.Open(tx, host{n, tx}, n.height+1)
}

// inputs puts inputs into the block.
func (b *block) inputs(ctx context.Context, inputs []*Input) error {
	for i, in := range inputs {
		o := Outcome{Sender: in.Sender, Seq: in.Seq, Type: in.Type, Status: Accepted}
		next := int64(1)
		if _, err := readJSON(ctx, &b.tx.Reader, nextKey(in.Sender), &next); err != nil {
			return err
		}
		switch {
		case in.Seq < next:
			o.Status, o.Reason = Duplicate, fmt.Sprintf("the next seq of %s is %d", in.Sender, next)
		case in.Seq > next:
			o.Status, o.Reason = Early, fmt.Sprintf("the next seq of %s is %d", in.Sender, next)
		default:
			err := notInitialized(b.tx.Try(func() error { return b.apply(ctx, in, &o) }))
			if reason, ok := refused(err); ok {
				o.Status, o.Reason = Refused, reason
			} else if err != nil {
				return fmt.Errorf("input %d, %s %d of %s: %w", i, in.Type, in.Seq, in.Sender, err)
			}
			if err := b.tx.Set(nextKey(in.Sender), strconv.FormatInt(next+1, 10)); err != nil {
				return err
			}
		}
		b.Block.Inputs = append(b.Block.Inputs, o)
	}
	return nil
}

// work does what is in the run queue, so far as the block has room for it, then the controller's share.
func (b *block) work(ctx context.Context) error {
	for b.Cranks < b.n.settings.Cranks && b.Computrons < b.limits.Budget.Limit {
		d, more, err := b.n.kernel.Next(ctx, b.tx)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		b.Cranks++
		if d == nil {
			continue
		}
		if err := b.dispatch(ctx, d); err != nil {
			return err
		}
	}
	var err error
	if b.Upgrades, err = b.c.EndBlock(ctx, b.Computrons); err != nil {
		return err
	}
	if _, err := b.n.kernel.CleanUp(ctx, b.tx, int(b.n.settings.CleanUp)); err != nil {
		return err
	}
	b.Tally, err = b.c.Tally(ctx)
	return err
}

// dispatch makes a delivery, or lets the controller have it.
func (b *block) dispatch(ctx context.Context, d *kernel.Delivery) error {
	parts, err := encode(d)
	if err != nil {
		return err
	}
	for _, part := range parts {
		v, err := b.c.Admit(ctx, d.Vat, part)
		if err != nil {
			return err
		}
		switch v.Action {
		case upgrade.Deliver: // and so it is for all parts
			return b.deliver(ctx, d)
		case upgrade.Refuse:
			if err := b.n.kernel.Reject(ctx, b.tx, d, v.Reason); err != nil {
				return err
			}
		case upgrade.Drop:
			if err := b.n.kernel.Drop(ctx, b.tx, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *block) deliver(ctx context.Context, d *kernel.Delivery) error {
	r, err := b.n.deliver(ctx, b.tx, d)
	if err != nil {
		return fmt.Errorf("a %s for %s: %w", d.Kind, d.Vat, err)
	}
	b.Computrons += used(r)
	why := ""
	if r != nil {
		why = r.Problem
	}
	return b.gone(ctx, d.Vat, why)
}

// gone tells the controller if a vat was terminated in a crank.
func (b *block) gone(ctx context.Context, id, why string) error {
	if gone, err := kernel.Terminated(ctx, &b.tx.Reader, id); err != nil || !gone {
		return err
	}
	if why == "" {
		why = "it has ended by itself"
	}
	_, err := b.c.Terminate(ctx, id, why)
	return err
}

// finish records the block and hashes it.
func (b *block) finish(ctx context.Context, inputs []*Input) error {
	results, err := b.n.kernel.Results(ctx, b.tx)
	if err != nil {
		return err
	}
	for _, r := range results {
		result := Result{Height: b.Height, Rejected: r.Rejected, Data: r.Data}
		if _, err := fmt.Sscanf(r.Key, "%s %d", &result.Sender, &result.Seq); err != nil {
			return fmt.Errorf("a result for %q: %w", r.Key, err)
		}
		b.Results = append(b.Results, result)
		if err := setJSON(b.tx, resultKey(result.Sender, result.Seq), result); err != nil {
			return err
		}
	}
	if b.Queue, err = kernel.Queued(ctx, &b.tx.Reader); err != nil {
		return err
	}
	if b.Leavings, err = kernel.Leavings(ctx, &b.tx.Reader); err != nil {
		return err
	}
	var events strings.Builder
	e := json.NewEncoder(&events)
	for _, event := range b.c.Events() {
		if err := e.Encode(event); err != nil {
			return err
		}
		switch event.Type {
		case upgrade.VatUpgraded:
			b.Upgraded = append(b.Upgraded, event.Vat)
		case upgrade.UpgradeFailed:
			b.Failed = append(b.Failed, event.Vat)
		}
	}
	if r, err := b.c.Rollout(ctx); err != nil {
		return err
	} else if r != nil {
		b.Rollout = fmt.Sprintf("%d/%d/%d of %d, %s", r.Upgraded, r.Failed, r.Skipped, r.Steps, r.State)
	}
	if err := b.tx.Set(heightKey, strconv.FormatInt(b.Height, 10)); err != nil {
		return err
	}
	changes, err := b.tx.Changes(ctx)
	if err != nil {
		return err
	}
	b.Changes, b.AppHash = len(changes), nextHash(b.n.hash, changes)
	var lines strings.Builder
	for _, in := range inputs {
		lines.Write(in.Raw)
		lines.WriteByte('\n')
	}
	for _, local := range []struct{ key, value string }{
		{appHashKey, b.AppHash}, {inputsKey(b.Height), lines.String()}, {eventsKey(b.Height), events.String()},
	} {
		if err := b.tx.Set(local.key, local.value); err != nil {
			return err
		}
	}
	if err := b.prune(ctx); err != nil {
		return err
	}
	return setJSON(b.tx, blockKey(b.Height), b.Block)
}

// prune removes the records of old blocks: more than one of them if the node keeps fewer than before.
func (b *block) prune(ctx context.Context) error {
	if b.n.o.Keep == 0 {
		return nil
	}
	const most = 100
	for range most {
		old, err := firstKept(ctx, &b.tx.Reader)
		if err != nil || old == 0 || old > b.Height-int64(b.n.o.Keep) {
			return err
		}
		for _, key := range []string{blockKey(old), inputsKey(old), eventsKey(old)} {
			if err := b.tx.Delete(key); err != nil {
				return err
			}
		}
	}
	return nil
}

// genesisHash is the app hash at height 0.
var genesisHash = func() string {
	sum := sha256.Sum256([]byte("enginery chain"))
	return hex.EncodeToString(sum[:])
}()

// nextHash returns the app hash after a block: SHA-256 of the app hash before, its 32 bytes, and of each key that the block has changed, in the
// order of their bytes: key, and 0 if it was deleted or else 1 and value. Before a key and a value stands its length in bytes, as a uvarint.
func nextHash(before string, changes []swingstore.Change) string {
	h := sha256.New()
	b, _ := hex.DecodeString(before)
	h.Write(b)
	write := func(s string) {
		h.Write(binary.AppendUvarint(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	for _, c := range changes {
		write(c.Key)
		if c.Deleted {
			h.Write([]byte{0})
			continue
		}
		h.Write([]byte{1})
		write(c.Value)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// head returns the height and app hash of a chain. Before its first block it has no key.
func head(ctx context.Context, r *swingstore.Reader) (height int64, hash string, err error) {
	if _, err := readJSON(ctx, r, heightKey, &height); err != nil {
		return 0, "", err
	}
	if height == 0 {
		key, err := r.NextKey(ctx, "")
		if key != "" {
			err = fmt.Errorf("%s: %w", r.Path(), ErrForeign)
		}
		return 0, genesisHash, err
	}
	hash, err = r.Get(ctx, appHashKey)
	return height, hash, err
}

// readJSON reads the value of a key into v, and reports whether there is one.
func readJSON(ctx context.Context, r *swingstore.Reader, key string, v any) (bool, error) {
	text, err := r.Get(ctx, key)
	if errors.Is(err, swingstore.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return false, fmt.Errorf("%s: reading key %q: %w", r.Path(), key, err)
	}
	return true, nil
}

func setJSON(tx *swingstore.Tx, key string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Set(key, string(text))
}
