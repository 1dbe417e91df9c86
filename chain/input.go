package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/enginery/enginery/chain/kernel"
	"github.com/enginery/enginery/internal/keys"
	"github.com/enginery/enginery/upgrade"
)

// Input is something from outside that is put into a block: a message to a vat, or a decision of governance. docs/chain.md says what each
// type does. It is a line of JSON.
type Input struct {
	Sender string `json:"sender"`
	Seq    int64  `json:"seq"` // 1, 2, … of the sender's; what has come before is not done again
	Type   string `json:"type"`

	Version        string          `json:"version,omitempty"`
	Index          string          `json:"index,omitempty"`
	Classification string          `json:"classification,omitempty"`
	Settings       json.RawMessage `json:"settings,omitempty"` // of upgrade.Settings what is to be other than it is

	SnapshotInitial  int64 `json:"snapshotInitial,omitempty"`
	SnapshotInterval int64 `json:"snapshotInterval,omitempty"`
	Cranks           int64 `json:"cranks,omitempty"`
	CleanUp          int64 `json:"cleanUp,omitempty"`

	Vat        string          `json:"vat,omitempty"`    // name or ID
	Bundle     json.RawMessage `json:"bundle,omitempty"` // a bundle, or its ID in a string
	Parameters json.RawMessage `json:"parameters,omitempty"`
	LegacyOnly bool            `json:"legacyOnly,omitempty"`
	Metered    bool            `json:"metered,omitempty"`
	Method     string          `json:"method,omitempty"`
	Args       json.RawMessage `json:"args,omitempty"`
	Ack        int64           `json:"ack,omitempty"` // results up to this one have arrived
	Message    string          `json:"message,omitempty"`
	Reason     string          `json:"reason,omitempty"`

	MaxFailures int64          `json:"maxFailures,omitempty"`
	OnFailure   upgrade.Policy `json:"onFailure,omitempty"`
	Paused      bool           `json:"paused,omitempty"`
	Steps       []upgrade.Step `json:"steps,omitempty"` // their vats and bundles by name or ID, and ID

	Height int64 `json:"height,omitempty"` // of BlockType

	// Raw is the line that it was read from; it is what is kept of it.
	Raw json.RawMessage `json:"-"`
}

// BlockType is the type of a line that ends a block, and is not an input: the lines before it, since the last of the kind, are the block's, and
// empty blocks follow up to its height.
const BlockType = "block"

// fields are the types of inputs and what each may say, besides sender, seq and type; those that must be there come first, up to the ";".
var fields = map[string]string{
	"init":      "version; settings snapshotInitial snapshotInterval cranks cleanUp",
	"settings":  "settings;",
	"bundle":    "bundle;",
	"install":   "vat bundle; parameters legacyOnly metered",
	"deliver":   "vat method; args ack",
	"adopt":     "version; index classification",
	"retire":    "version;",
	"rollout":   "; version maxFailures onFailure paused steps",
	"extend":    "steps;",
	"upgrade":   "vat; bundle parameters message",
	"pause":     "; vat",
	"resume":    "; vat",
	"abort":     "; reason",
	"suspend":   "vat;",
	"rollback":  "vat;",
	"terminate": "vat; reason",
}

var (
	senderName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	vatName    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,63}$`)
	vatID      = regexp.MustCompile(`^v[0-9]+$`)
)

// ParseInput reads a line.
func ParseInput(line []byte) (*Input, error) {
	var given map[string]json.RawMessage
	if err := json.Unmarshal(line, &given); err != nil {
		return nil, fmt.Errorf("an input is not an object in JSON: %w", err)
	}
	in := new(Input)
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field == "steps.bundle" {
			return nil, fmt.Errorf(`a step has a bundle that is JSON's %s, expected its ID, b1-…; an input of type bundle before it puts a bundle into the chain`, kind.Value)
		}
		return nil, fmt.Errorf("an input of type %q: %w", in.Type, err)
	}
	if in.Type == BlockType {
		if err := in.check(given, ";height"); err != nil {
			return nil, err
		}
		return in, nil
	}
	allowed, known := fields[in.Type]
	if !known {
		return nil, fmt.Errorf("an input is of type %q, expected one of %s or %s", in.Type, strings.Join(keys.Union(fields, nil), ", "), BlockType)
	}
	if !senderName.MatchString(in.Sender) {
		return nil, fmt.Errorf("the sender is %q, expected up to 64 letters, digits, _ and -", in.Sender)
	}
	if in.Seq < 1 {
		return nil, fmt.Errorf("the seq of %s is %d, expected 1 or more", in.Sender, in.Seq)
	}
	if given["vat"] != nil && in.Vat == "" {
		return nil, fmt.Errorf("an input of type %s has an empty vat", in.Type) // which would be none: pause is also for the rollout
	}
	delete(given, "sender")
	delete(given, "seq")
	if err := in.check(given, allowed); err != nil {
		return nil, err
	}
	var raw bytes.Buffer
	if err := json.Compact(&raw, line); err != nil {
		return nil, err
	}
	in.Raw = raw.Bytes()
	return in, nil
}

func (in *Input) check(given map[string]json.RawMessage, allowed string) error {
	delete(given, "type")
	must, may, _ := strings.Cut(allowed, ";")
	for _, field := range strings.Fields(must) {
		if given[field] == nil {
			return fmt.Errorf("an input of type %s has no %s", in.Type, field)
		}
	}
	for _, field := range keys.Union(given, nil) {
		if all := slices.Concat(strings.Fields(must), strings.Fields(may)); !slices.Contains(all, field) {
			return fmt.Errorf("an input of type %s has %q, which is not one of its fields: %s", in.Type, field, strings.Join(all, ", "))
		}
	}
	return nil
}

// bundleID returns the ID that an input gives a bundle by, or "".
func (in *Input) bundleID() string {
	var id string
	if json.Unmarshal(in.Bundle, &id) != nil {
		return ""
	}
	return id
}

// capData encodes a value in JSON. In it, {"@vat":"NAME"} stands for the root object of a vat, which root gives the ID of, {"@bigint":"7"} for
// a BigInt and {"@undefined":true} for undefined.
func capData(text json.RawMessage, root func(name string) (id string, err error)) (kernel.CapData, error) {
	data := kernel.CapData{Slots: []string{}}
	var value any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		return data, err
	}
	var special func(v any) (any, error)
	special = func(v any) (any, error) {
		switch v := v.(type) {
		case []any:
			for i := range v {
				item, err := special(v[i])
				if err != nil {
					return nil, err
				}
				v[i] = item
			}
		case map[string]any:
			if len(v) == 1 {
				if name, ok := v["@vat"].(string); ok {
					id, err := root(name)
					if err != nil {
						return nil, err
					}
					i := slices.Index(data.Slots, id)
					if i < 0 {
						i = len(data.Slots)
						data.Slots = append(data.Slots, id)
					}
					return kernel.Smallcaps(fmt.Sprintf("$%d.Alleged: root", i)), nil
				}
				if digits, ok := v["@bigint"].(string); ok {
					if !regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`).MatchString(digits) {
						return nil, refuse("a BigInt is %q, expected digits", digits)
					}
					if digits[0] != '-' {
						digits = "+" + digits
					}
					return kernel.Smallcaps(digits), nil
				}
				if v["@undefined"] == true {
					return kernel.Smallcaps("#undefined"), nil
				}
			}
			for _, name := range keys.Union(v, nil) {
				item, err := special(v[name])
				if err != nil {
					return nil, err
				}
				v[name] = item
			}
		}
		return v, nil
	}
	value, err := special(value)
	if err != nil {
		return data, err
	}
	data.Body, err = kernel.Encode(value)
	return data, err
}

// resultKey is under which the kernel gives the result of a message back.
func (in *Input) resultKey() string { return in.Sender + " " + strconv.FormatInt(in.Seq, 10) }
