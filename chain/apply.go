package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/swingstore"
	"github.com/enginery/enginery/upgrade"
	"github.com/enginery/enginery/vat"
)

// apply does what an input says, and completes its outcome.
func (b *block) apply(ctx context.Context, in *Input, o *Outcome) error {
	id := ""
	if in.Vat != "" && in.Type != "install" {
		var err error
		if id, err = b.lookup(ctx, in.Vat); err != nil {
			return err
		}
		o.Vat = id
	}
	switch in.Type {
	case "init":
		return b.init(ctx, in)
	case "settings":
		s, err := b.c.Settings(ctx)
		if err != nil {
			return err
		}
		if err := overlay(&s, in.Settings); err != nil {
			return err
		}
		return b.c.Set(ctx, s)
	case "bundle":
		_, err := b.bundle(ctx, in.Bundle)
		return err
	case "install":
		return b.install(ctx, in, o)
	case "deliver":
		return b.send(ctx, in, id)
	case "adopt":
		return b.c.Adopt(ctx, upgrade.Adoption{Version: in.Version, Index: in.Index, Classification: in.Classification})
	case "retire":
		return b.c.Retire(ctx, in.Version)
	case "rollout":
		return b.rollout(ctx, in)
	case "extend":
		steps, err := b.steps(ctx, in.Steps)
		if err != nil {
			return err
		}
		return b.c.ExtendRollout(ctx, steps)
	case "upgrade":
		return b.upgrade(ctx, in, id)
	case "pause":
		if id == "" {
			return b.c.PauseRollout(ctx)
		}
		return b.c.Pause(ctx, id)
	case "resume":
		if id == "" {
			return b.c.ResumeRollout(ctx)
		}
		return b.c.Resume(ctx, id)
	case "abort":
		return b.c.AbortRollout(ctx, in.Reason)
	case "suspend":
		return b.c.Suspend(ctx, id)
	case "rollback":
		return b.c.RollBack(ctx, id)
	case "terminate":
		reason := in.Reason
		if reason == "" {
			reason = "vat terminated"
		}
		if _, err := b.c.Terminate(ctx, id, reason); err != nil {
			return err
		}
		return b.n.kernel.Terminate(ctx, b.tx, id, reason)
	}
	return refuse("inputs of type %q are not known", in.Type)
}

// overlay changes of settings what an input says.
func overlay(s *upgrade.Settings, changes json.RawMessage) error {
	d := json.NewDecoder(strings.NewReader(string(changes)))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return refuse("the settings: %v", err)
	}
	return nil
}

func (b *block) init(ctx context.Context, in *Input) error {
	s := settings{SnapshotInitial: in.SnapshotInitial, SnapshotInterval: in.SnapshotInterval, Cranks: in.Cranks, CleanUp: in.CleanUp}
	if min(s.SnapshotInitial, s.SnapshotInterval, s.Cranks, s.CleanUp) < 0 {
		return refuse("the settings are %+v, expected nothing below 0", s)
	}
	limits := upgrade.DefaultSettings()
	if in.Settings != nil {
		if err := overlay(&limits, in.Settings); err != nil {
			return err
		}
	}
	if err := b.c.Init(ctx, in.Version, limits); err != nil {
		return err
	}
	if err := (host{b.n, b.tx}).CheckVersion(ctx, upgrade.Adoption{Version: in.Version}); err != nil {
		b.c = b.n.controller(b.tx) // the other has a state, which is undone
		return err
	}
	b.n.settings = s.orDefault()
	return setJSON(b.tx, settingsKey, b.n.settings)
}

// lookup returns the ID of the vat that an input means.
func (b *block) lookup(ctx context.Context, name string) (string, error) {
	if vatID.MatchString(name) {
		return name, nil
	}
	id, err := kernel.Lookup(ctx, &b.tx.Reader, name)
	if err == nil && id == "" {
		err = refuse("there is no vat %q", name)
	}
	return id, err
}

// bundle returns the ID of the bundle that an input has or names, which the store has then.
func (b *block) bundle(ctx context.Context, bundle json.RawMessage) (string, error) {
	in := Input{Bundle: bundle}
	if id := in.bundleID(); id != "" {
		return id, b.hasBundle(ctx, id)
	}
	if !strings.HasPrefix(string(bundle), "{") {
		return "", refuse("the bundle is %s, expected a bundle, an object, or its ID, a string", bundle)
	}
	if _, err := swingstore.ParseBundle(bundle); err != nil {
		return "", refuse("%v", err)
	}
	return b.tx.AddBundle(bundle)
}

func (b *block) hasBundle(ctx context.Context, id string) error {
	_, err := b.tx.Bundle(ctx, id)
	if errors.Is(err, swingstore.ErrNotFound) {
		return refuse("there is no bundle %s; send it first, as an input of type bundle", id)
	}
	return err
}

// parameters returns those of a vat, for startVat.
func (b *block) parameters(in *Input) (json.RawMessage, error) {
	if in.Parameters == nil {
		return nil, nil
	}
	data, err := capData(in.Parameters, func(string) (string, error) {
		return "", refuse("the parameters of a vat cannot have other vats in them; send them in a message")
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(data)
}

func (b *block) install(ctx context.Context, in *Input, o *Outcome) error {
	if !vatName.MatchString(in.Vat) || vatID.MatchString(in.Vat) {
		return refuse("the name of a vat is %q, expected a letter and up to 63 letters, digits, _ and -, and not an ID such as v1", in.Vat)
	}
	if other, err := kernel.Lookup(ctx, &b.tx.Reader, in.Vat); err != nil {
		return err
	} else if other != "" {
		return refuse("the name %s is that of %s", in.Vat, other)
	}
	channels, err := b.c.Channels(ctx)
	if err != nil {
		return err
	}
	version := channels.Current
	if in.LegacyOnly {
		version = channels.Legacy
	}
	i := vat.Incarnation{Name: in.Vat, Engine: version}
	if in.Metered {
		i.MeterID = "m1" // all have the same limit for a crank
	}
	if i.BundleID, err = b.bundle(ctx, in.Bundle); err != nil {
		return err
	}
	if i.Parameters, err = b.parameters(in); err != nil {
		return err
	}
	var r *vat.Result
	err = b.n.again(ctx, func() error {
		o.Vat, r, err = b.n.kernel.Install(ctx, b.tx, i)
		return err
	})
	if err != nil {
		return err
	}
	s, err := b.c.Settings(ctx)
	if err != nil {
		return err
	}
	b.Computrons += s.Budget.Start + used(r)
	if !r.Kept {
		return refuse("%s does not start: %s", in.Vat, r.Problem)
	}
	b.n.use(o.Vat)
	if err := b.c.AddVatOn(ctx, o.Vat, version, in.LegacyOnly); err != nil {
		return err
	}
	return b.gone(ctx, o.Vat, r.Problem)
}

// notInitialized refuses what comes before there are versions.
func notInitialized(err error) error {
	if errors.Is(err, upgrade.ErrNotInitialized) {
		return refuse("the chain has no versions yet; its first input must be of type init")
	}
	return err
}

func (b *block) send(ctx context.Context, in *Input, id string) error {
	args := in.Args
	if args == nil {
		args = json.RawMessage("[]")
	}
	if !strings.HasPrefix(strings.TrimSpace(string(args)), "[") {
		return refuse("args are %s, expected an array", args)
	}
	root := func(name string) (string, error) {
		id, err := b.lookup(ctx, name)
		if err != nil {
			return "", err
		}
		return id, b.alive(ctx, id)
	}
	if err := b.alive(ctx, id); err != nil {
		return err
	}
	data, err := capData(args, root)
	if err != nil {
		return err
	}
	method, err := kernel.Encode(in.Method)
	if err != nil {
		return err
	}
	data.Body = "#[" + strings.TrimPrefix(method, "#") + "," + strings.TrimPrefix(data.Body, "#") + "]"
	if in.Ack > 0 {
		if err := b.acknowledge(ctx, in.Sender, in.Ack); err != nil {
			return err
		}
	}
	return b.n.kernel.Send(ctx, b.tx, id, data, in.resultKey())
}

// alive refuses what is for a vat that is not there.
func (b *block) alive(ctx context.Context, id string) error {
	v, err := b.c.Vat(ctx, id)
	if err == nil && v.Terminated {
		err = refuse("%s is terminated", id)
	}
	return err
}

// acknowledge removes the results of a sender up to one.
func (b *block) acknowledge(ctx context.Context, sender string, seq int64) error {
	prefix := "chain.sender." + sender + ".result."
	for {
		key, err := b.tx.NextKey(ctx, prefix)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(key, prefix) || key > resultKey(sender, seq) {
			return nil
		}
		if err := b.tx.Delete(key); err != nil {
			return err
		}
	}
}

func (b *block) rollout(ctx context.Context, in *Input) error {
	p := upgrade.Plan{Version: in.Version, MaxFailures: in.MaxFailures, OnFailure: in.OnFailure, Paused: in.Paused}
	channels, err := b.c.Channels(ctx)
	if err != nil {
		return err
	}
	if p.Version == "" {
		p.Version = channels.Current
	}
	if in.Steps != nil {
		p.Steps, err = b.steps(ctx, in.Steps)
	} else {
		p.Steps, err = b.everyone(ctx, p.Version)
	}
	if err != nil {
		return err
	}
	return b.c.StartRollout(ctx, p)
}

// steps gives the vats of steps their IDs.
func (b *block) steps(ctx context.Context, steps []upgrade.Step) ([]upgrade.Step, error) {
	all := make([]upgrade.Step, len(steps))
	for i, s := range steps {
		var err error
		if s.Vat, err = b.lookup(ctx, s.Vat); err != nil {
			return nil, err
		}
		after := s.After
		s.After = nil
		for _, name := range after {
			id, err := b.lookup(ctx, name)
			if err != nil {
				return nil, err
			}
			s.After = append(s.After, id)
		}
		if s.Bundle != "" {
			if err := b.hasBundle(ctx, s.Bundle); err != nil {
				return nil, err
			}
		}
		all[i] = s
	}
	return all, nil
}

// everyone returns steps for all vats that may be upgraded, in the order in which they were installed.
func (b *block) everyone(ctx context.Context, version string) ([]upgrade.Step, error) {
	var ids []string
	if _, err := readJSON(ctx, &b.tx.Reader, "vat.dynamicIDs", &ids); err != nil {
		return nil, err
	}
	var steps []upgrade.Step
	for _, id := range ids {
		v, err := b.c.Vat(ctx, id)
		if err != nil {
			return nil, err
		}
		if !v.LegacyOnly && !v.Terminated && (v.Version != version || v.Suspended) {
			steps = append(steps, upgrade.Step{Vat: id})
		}
	}
	return steps, nil
}

func (b *block) upgrade(ctx context.Context, in *Input, id string) error {
	r := upgrade.Request{ID: in.resultKey(), Message: in.Message}
	var err error
	if in.Bundle != nil {
		if r.Bundle, err = b.bundle(ctx, in.Bundle); err != nil {
			return err
		}
	}
	if r.Parameters, err = b.parameters(in); err != nil {
		return err
	}
	if _, err := b.c.RequestUpgrade(ctx, id, r); err != nil {
		return fmt.Errorf("upgrading %s: %w", in.Vat, err)
	}
	return nil
}
