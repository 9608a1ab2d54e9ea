// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Roles} from "./Roles.sol";

interface IReward {
    function fillReward(uint256 beforeLength, uint256 chargedSectors) external payable;
}

/// One price for every sector; what was paid goes to whoever rewards miners.
contract FixedPriceMarket is Roles {
    bytes32 public constant PARAMS_ADMIN_ROLE = keccak256("PARAMS_ADMIN_ROLE");

    uint256 public pricePerSector;
    address public flow;
    address public reward;

    constructor() {
        _lockForever();
    }

    receive() external payable {}

    function initialize(uint256 pricePerSector_, address flow_, address reward_) external once {
        _grant(DEFAULT_ADMIN_ROLE, msg.sender);
        _grant(PARAMS_ADMIN_ROLE, msg.sender);
        pricePerSector = pricePerSector_;
        flow = flow_;
        reward = reward_;
    }

    function setPricePerSector(uint256 pricePerSector_) external onlyRole(PARAMS_ADMIN_ROLE) {
        pricePerSector = pricePerSector_;
    }

    /// Nothing is charged for padding.
    function chargeFee(uint256 beforeLength, uint256 uploadSectors, uint256 paddingSectors) external {
        require(msg.sender == flow, "Sender does not have permission");
        uint256 fee = uploadSectors * pricePerSector;
        IReward(reward).fillReward{value: fee}(beforeLength + paddingSectors, uploadSectors);
    }
}

/// Keeps the fees: nobody mines here.
contract MiningReward {
    mapping(uint256 position => uint256 neuron) public filled;

    function fillReward(uint256 beforeLength, uint256) external payable {
        filled[beforeLength] += msg.value;
    }
}
