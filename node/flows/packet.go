package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/policy"
)

// packet is what a flow record needs of a packet's headers.
type packet struct {
	src, dst           netip.Addr
	protocol           policy.Protocol
	srcPort, dstPort   uint16
	hasICMP            bool
	icmpType, icmpCode uint8
}

var errShort = errors.New("the packet ends inside of its headers")

// IPv6 extension headers that may stand before the transport's (RFC 8200,
// RFC 4302).
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destination = 60
)

// maxExtensions bounds how far a hostile packet makes us look.
const maxExtensions = 8

// decode reads the headers of an IP packet.
func decode(b []byte) (packet, error) {
	if len(b) == 0 {
		return packet{}, errShort
	}
	switch version := b[0] >> 4; version {
	case 4:
		return decode4(b)
	case 6:
		return decode6(b)
	default:
		return packet{}, fmt.Errorf("it is of IP version %d", version)
	}
}

func decode4(b []byte) (packet, error) {
	var p packet
	if len(b) < 20 {
		return p, errShort
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.protocol = policy.Protocol(b[9])
	size := int(b[0]&15) * 4
	if size < 20 {
		return p, fmt.Errorf("its header is %d bytes long", size)
	}
	if offset := binary.BigEndian.Uint16(b[6:8]) & 0x1fff; offset != 0 || len(b) < size {
		return p, nil // not the first fragment: it has no ports
	}
	p.transport(b[size:])
	return p, nil
}

func decode6(b []byte) (packet, error) {
	var p packet
	if len(b) < 40 {
		return p, errShort
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:]
	for range maxExtensions {
		size := 0
		switch next {
		case hopByHop, routing, destination:
			if len(rest) >= 2 {
				size = 8 + int(rest[1])*8
			}
		case authHeader:
			if len(rest) >= 2 {
				size = 8 + int(rest[1])*4
			}
		case fragment:
			if len(rest) >= 8 && binary.BigEndian.Uint16(rest[2:4])&^7 != 0 {
				p.protocol = policy.Protocol(rest[0])
				return p, nil // not the first fragment
			}
			size = 8
		default:
			p.protocol = policy.Protocol(next)
			p.transport(rest)
			return p, nil
		}
		if size == 0 || len(rest) < size {
			return p, errShort
		}
		next, rest = rest[0], rest[size:]
	}
	return p, errors.New("it has too many extension headers")
}

// transport reads ports, or type and code; what is not there stays unknown.
func (p *packet) transport(b []byte) {
	switch p.protocol {
	case policy.TCP, policy.UDP, policy.SCTP:
		if len(b) >= 4 {
			p.srcPort, p.dstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	case policy.ICMP, policy.ICMPv6:
		if len(b) >= 2 {
			p.hasICMP, p.icmpType, p.icmpCode = true, b[0], b[1]
		}
	}
}

// opposite is the packet that p replies to, as far as p tells.
func (p packet) opposite() packet {
	p.src, p.dst = p.dst, p.src
	p.srcPort, p.dstPort = p.dstPort, p.srcPort
	switch asked, ok := firewall.Asked(p.protocol, p.icmpType); {
	case !p.hasICMP:
	case ok:
		p.icmpType = asked
	default:
		p.hasICMP = false
	}
	return p
}
