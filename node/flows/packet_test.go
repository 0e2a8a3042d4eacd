package flows

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/policy"
)

const (
	v4 = "c0000201" + "c0000202"
	v6 = "20010db8000000000000000000000001" + "20010db8000000000000000000000002"
)

func TestDecode(t *testing.T) {
	a4, b4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	a6, b6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for _, tt := range []struct {
		name, hex string
		want      packet
		err       string
	}{
		{"TCP", "45000028000000004006 0000" + v4 + "9c40 0050", packet{src: a4, dst: b4, protocol: policy.TCP, srcPort: 40000, dstPort: 80}, ""},
		{"options before TCP", "46000028000000004006 0000" + v4 + "01010101 9c40 0050", packet{src: a4, dst: b4, protocol: policy.TCP, srcPort: 40000, dstPort: 80}, ""},
		{"a later fragment has no ports", "4500002800000001 4011 0000" + v4 + "9c40 0050", packet{src: a4, dst: b4, protocol: policy.UDP}, ""},
		{"ICMP", "45000028000000004001 0000" + v4 + "0301", packet{src: a4, dst: b4, protocol: policy.ICMP, hasICMP: true, icmpType: 3, icmpCode: 1}, ""},
		{"SCTP", "45000028000000004084 0000" + v4 + "9c40 0050", packet{src: a4, dst: b4, protocol: policy.SCTP, srcPort: 40000, dstPort: 80}, ""},
		{"cut in the transport", "45000028000000004006 0000" + v4 + "9c", packet{src: a4, dst: b4, protocol: policy.TCP}, ""},
		{"UDP over IPv6", "600000000008 11 40" + v6 + "9c40 0035", packet{src: a6, dst: b6, protocol: policy.UDP, srcPort: 40000, dstPort: 53}, ""},
		{"behind extension headers", "600000000008 00 40" + v6 + "2b00000000000000" + "3c00000000000000" + "0600000000000000" + "9c40 0050",
			packet{src: a6, dst: b6, protocol: policy.TCP, srcPort: 40000, dstPort: 80}, ""},
		{"the first fragment of IPv6", "600000000008 2c 40" + v6 + "1100000100000001" + "9c40 0035", packet{src: a6, dst: b6, protocol: policy.UDP, srcPort: 40000, dstPort: 53}, ""},
		{"a later fragment of IPv6", "600000000008 2c 40" + v6 + "1100000900000001" + "9c40 0035", packet{src: a6, dst: b6, protocol: policy.UDP}, ""},
		{"nothing", "", packet{}, "ends inside"},
		{"too short for IPv4", "45000028", packet{}, "ends inside"},
		{"neither 4 nor 6", "15000028", packet{}, "version 1"},
		{"a header that is too small", "44000028000000004006 0000" + v4, packet{src: a4, dst: b4, protocol: policy.TCP}, "header is 16"},
		{"cut in an extension", "600000000008 00 40" + v6 + "2b", packet{src: a6, dst: b6}, "ends inside"},
		{"extensions without an end", "600000000008 00 40" + v6 + strings.Repeat("0000000000000000", 12), packet{src: a6, dst: b6}, "too many"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := hex.DecodeString(strings.ReplaceAll(tt.hex, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			got, err := decode(b)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestOpposite: of a reply that was dropped the flow is told that it belongs to.
func TestOpposite(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, tt := range []struct {
		name        string
		reply, want packet
	}{
		{"UDP", packet{src: a, dst: b, protocol: policy.UDP, srcPort: 53, dstPort: 40000}, packet{src: b, dst: a, protocol: policy.UDP, srcPort: 40000, dstPort: 53}},
		{"an echo", packet{src: a, dst: b, protocol: policy.ICMP, hasICMP: true}, packet{src: b, dst: a, protocol: policy.ICMP, hasICMP: true, icmpType: 8}},
		{"an echo over IPv6", packet{src: a, dst: b, protocol: policy.ICMPv6, hasICMP: true, icmpType: 129}, packet{src: b, dst: a, protocol: policy.ICMPv6, hasICMP: true, icmpType: 128}},
		{"ICMP that answers nothing", packet{src: a, dst: b, protocol: policy.ICMP, hasICMP: true, icmpType: 3}, packet{src: b, dst: a, protocol: policy.ICMP, icmpType: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.reply.opposite(); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x45})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 0, 64}, make([]byte, 80)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b)
		if err == nil && (!p.src.IsValid() || !p.dst.IsValid()) {
			t.Errorf("%x has no addresses and no error", b)
		}
	})
}

func message(prefix string, seq uint32, payload []byte) netlink.Message {
	e := netlink.NewAttributeEncoder()
	e.Bytes(attributePrefix, append([]byte(prefix), 0))
	e.Bytes(attributeSeq, binary.BigEndian.AppendUint32(nil, seq))
	e.Bytes(attributeTimestamp, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 1_000_000), 7))
	e.Bytes(attributePayload, payload)
	b, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return netlink.Message{Header: netlink.Header{Type: messageType(messagePacket)}, Data: append([]byte{0, 0, 0, 0}, b...)}
}

// TestTake: what was lost is told with the next record, what is not ours is
// left, and a rule that nobody knows any more is no secret.
func TestTake(t *testing.T) {
	payload, err := hex.DecodeString("45000028000000004006" + "0000" + v4 + "9c400050")
	if err != nil {
		t.Fatal(err)
	}
	ring := flow.NewRing(10, 0)
	var told []string
	r, err := New(Options{Log: quiet(), Node: "n", Ring: ring, Told: func(r *flow.Record) { told = append(told, r.Policy) },
		Who: func(netip.Addr) flow.Endpoint { return flow.Endpoint{} },
		Dropped: func(id string) (firewall.Drop, bool) {
			return firewall.Drop{Direction: policy.Egress, Decision: flow.Decision{Policy: "MeshPolicy a/b"}}, id == "known"
		}})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range []netlink.Message{message(firewall.LogPrefix+"known", 1, payload), message("other", 2, payload), message(firewall.LogPrefix+"gone", 3, payload)} {
		l, ok, err := parse(m)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		r.take(l, uint64(i))
	}
	if d := cmp.Diff([]string{"MeshPolicy a/b", ""}, told); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
	recs := ring.Recent(flow.Filter{})
	if len(recs) != 2 || recs[0].Direction != "Egress" || recs[1].Lost != 2 || !strings.Contains(recs[1].Reason, "agent before") {
		t.Errorf("records %+v", recs)
	}
	if got := recs[0].Time.UnixMicro(); got != 1_000_000_000_007 {
		t.Errorf("time %d", got)
	}
	if r.Lost() != 3 {
		t.Errorf("lost %d", r.Lost())
	}
	if _, ok, err := parse(netlink.Message{Header: netlink.Header{Type: netlink.Done}}); ok || err != nil {
		t.Error("the end of a batch is not a packet", ok, err)
	}
	if _, _, err := parse(netlink.Message{Header: netlink.Header{Type: messageType(messagePacket)}}); err == nil {
		t.Error("an empty message was read")
	}
}
